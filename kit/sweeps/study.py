"""Keep a sweep's trials in Optuna's database, and draw points from it. Use `SweepStudy`.

Its sampler is the Tree-structured Parzen Estimator (Bergstra et al. 2011). It is made anew for each
value, with a seed of the trial's number: a sweep that was interrupted then draws the same points as
one that was not.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import KitError
from kit.sweeps.space import grid_points, space_size
from kit.sweeps.sweep import Sweep

if TYPE_CHECKING:
    import optuna

# Pruning compares with the median of finished points, of which there should be some, and not at the
# first evaluation, when a high rate looks better than it will.
FINISHED_BEFORE_PRUNING = 5
FIRST_PRUNED_STEP = 2

# Points that are drawn at random before the sampler learns from them.
RANDOM_POINTS = 10

# The only study of the database.
_STUDY = "sweep"

FINISHED = "finished"
UNFINISHED = "unfinished"
PRUNED = "pruned"
COLLAPSED = "collapsed"
FAILED = "failed"


@dataclass(frozen=True)
class SweepTrial:
    """One point of a sweep and what became of it.

    Attributes:
        number: from 0, in the order in which points were drawn.
        point: values by key.
        state: "finished", "unfinished", "pruned", "collapsed" or "failed".
        losses: validation log losses by seed, once it is finished.
        why: why it did not finish.
        seconds: the time that it took, over all calls.
        reported: losses that pruning compares, by step.
    """

    number: int
    point: Mapping[str, Any]
    state: str
    losses: tuple[float, ...] = ()
    why: str = ""
    seconds: float = 0.0
    reported: Mapping[int, float] = field(default_factory=dict)


def require_optuna() -> None:
    """Raise KitError if Optuna is not installed."""
    if not find_spec("optuna"):
        raise KitError(
            "kit sweep needs the package optuna, which is not installed",
            "Install it with `pip install 'optuna>=4'` (kit's extra [sweep]).",
        )


@contextlib.contextmanager
def explain_database(path: Path) -> Generator[None]:
    """Turn an error of the database into one message.

    Raises:
        KitError: the file is damaged or cannot be written, or another Optuna made it.
    """
    require_optuna()
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise KitError(
            f"{path}: {reason}",
            "If the disk is not full, delete the folder of the sweep and run the same command "
            "again: the runs are elsewhere, and are used again.",
        ) from error


class SweepStudy:
    """The trials of a sweep.

    Only one process at a time may change them; see `kit.storage.lock`.

    Raises:
        KitError: Optuna is not installed, or the database cannot be read or written.
    """

    def __init__(self, sweep: Sweep):
        with explain_database(sweep.database):
            import optuna

            self.keys = sweep.definition.keys
            self.sampler_seed = sweep.definition.sampler_seed
            self.prune = sweep.definition.prune
            self.optuna = optuna
            self._handles: dict[int, optuna.trial.Trial] = {}
            self._reported: dict[int, set[int]] = {}
            pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
            if self.prune:
                pruner = optuna.pruners.MedianPruner(FINISHED_BEFORE_PRUNING, FIRST_PRUNED_STEP)
            self.study = optuna.create_study(
                storage=optuna.storages.RDBStorage(f"sqlite:///{sweep.database.absolute()}"),
                study_name=_STUDY,
                load_if_exists=True,
                pruner=pruner,
            )

    def trials(self) -> list[SweepTrial]:
        """Return all trials in their order."""
        return [self._describe(trial) for trial in self.study.get_trials(deepcopy=False)]

    def recover(self) -> None:
        """Complete what a process that was killed while it began a trial has left behind."""
        states = self.optuna.trial.TrialState
        for _ in self.study.get_trials(deepcopy=False, states=(states.WAITING,)):
            self._ask()
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self._complete(trial.number)

    def unfinished(self) -> SweepTrial | None:
        """Return the first trial that was begun and has not ended."""
        return next((trial for trial in self.trials() if trial.state == UNFINISHED), None)

    def typical_seconds(self) -> float:
        """Return the median time of the finished trials, 0 where there is none."""
        times = [trial.seconds for trial in self.trials() if trial.state == FINISHED]
        return median(times) if times else 0.0

    def is_complete(self, limit: int) -> bool:
        """Whether `limit` trials, or all points of a smaller space, have been begun."""
        trials = self.trials()
        whole = space_size(self.keys) <= limit and self._untried(trials) is None
        return whole or len(trials) >= limit

    def draw(self, limit: int) -> SweepTrial:
        """Begin a trial, and return it.

        Where the space has no more than `limit` points, they are tried one after the other.
        """
        point = self._untried(self.trials()) if space_size(self.keys) <= limit else None
        return self._ask() if point is None else self.begin(point)

    def begin(self, point: Mapping[str, Any]) -> SweepTrial:
        """Begin a trial of a given point."""
        self.study.enqueue_trial(dict(point))
        return self._ask()

    def report(self, number: int, step: int, loss: float) -> bool:
        """Take a loss to compare with those of other trials at this step.

        Returns:
            Whether the best one so far is worse than the median of the finished trials at this
            step, so that the trial should be pruned.
        """
        handle = self._handle(number)
        if step not in self._reported[number]:
            self._reported[number].add(step)
            handle.report(loss, step)
        return handle.should_prune()

    def is_worse(self, losses: Sequence[float]) -> bool:
        """Whether the mean loss of a trial's first seeds is worse than the median of the others'.

        Optuna's own rule compares the lowest loss of all steps, which is not the mean's.
        """
        count = len(losses)
        finished = [trial.losses[:count] for trial in self.trials() if trial.state == FINISHED]
        if not self.prune or len(finished) < FINISHED_BEFORE_PRUNING:
            return False
        return mean(losses) > median(mean(others) for others in finished)

    def add_seconds(self, number: int, seconds: float) -> None:
        """Add to the time that an unfinished trial has taken."""
        spent = self.trials()[number].seconds
        self._handle(number).set_user_attr("seconds", spent + seconds)

    def finish(self, number: int, losses: tuple[float, ...]) -> None:
        """End a trial with the loss of each seed, whose mean is what the sweep minimises."""
        self._handle(number).set_user_attr("losses", list(losses))
        self.study.tell(number, sum(losses) / len(losses))

    def end(self, number: int, state: str, why: str) -> None:
        """End a trial that did not finish: "pruned", "collapsed" or "failed"."""
        handle = self._handle(number)
        handle.set_user_attr("state", state)
        handle.set_user_attr("why", why)
        states = self.optuna.trial.TrialState
        # What the sampler learns from a pruned trial is how soon it ended, and its last loss.
        self.study.tell(number, state=states.FAIL if state == FAILED else states.PRUNED)

    def _untried(self, trials: Sequence[SweepTrial]) -> dict[str, Any] | None:
        """Return a point of a finite space that no trial has, None if there is none."""
        tried = [trial.point for trial in trials]
        return next((point for point in grid_points(self.keys) if point not in tried), None)

    def _ask(self) -> SweepTrial:
        """Begin the next trial of the queue, or one that the sampler draws."""
        return self._complete(self.study.ask().number)

    def _complete(self, number: int) -> SweepTrial:
        """Draw those values of a trial that it lacks, and return it."""
        handle = self._handle(number)
        for place, key in enumerate(self.keys):
            seeds = np.random.SeedSequence([self.sampler_seed, number, place])
            self.study.sampler = self.optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_POINTS, seed=int(seeds.generate_state(1)[0])
            )
            key.draw(handle)
        return self.trials()[number]

    def _handle(self, number: int) -> "optuna.trial.Trial":
        """Return what changes a trial, also one that another process began."""
        if number not in self._handles:
            known = self.study.get_trials(deepcopy=False)[number]
            self._handles[number] = self.optuna.trial.Trial(self.study, known._trial_id)
            self._reported[number] = set(known.intermediate_values)
        return self._handles[number]

    def _describe(self, trial: "optuna.trial.FrozenTrial") -> SweepTrial:
        states = self.optuna.trial.TrialState
        attributes = trial.user_attrs
        ended = {states.COMPLETE: FINISHED, states.FAIL: FAILED}
        ended[states.PRUNED] = attributes.get("state", PRUNED)
        drawn = trial.params
        return SweepTrial(
            number=trial.number,
            point={k.name: k.settle(drawn[k.name]) for k in self.keys if k.name in drawn},
            state=ended.get(trial.state, UNFINISHED),
            losses=tuple(attributes.get("losses", ())),
            why=attributes.get("why", ""),
            seconds=attributes.get("seconds", 0.0),
            reported=trial.intermediate_values,
        )
