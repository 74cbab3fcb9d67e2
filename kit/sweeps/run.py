"""Train a sweep's points one after the other, within the time there is. Use `run_sweep`."""

import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.costs.steps import training_steps
from kit.data.dataset import open_dataset
from kit.errors import CollapseError, DeviceError, KitError, RecipeError, RunError
from kit.fold_dir import FoldDir
from kit.launcher import is_distributed
from kit.model.memory import free_after_failure
from kit.recipe.spec import Recipe
from kit.run import Run, parse_folds
from kit.storage.atomic import read_text_file
from kit.storage.lock import hold_lock
from kit.sweeps.ranking import run_loss
from kit.sweeps.space import describe_point
from kit.sweeps.study import (
    COLLAPSED,
    FAILED,
    PRUNED,
    SweepStudy,
    SweepTrial,
    explain_database,
    require_optuna,
)
from kit.sweeps.sweep import Sweep
from kit.training.callbacks import TrainingProgress
from kit.training.checkpoints import CHECKPOINTS, remove_checkpoints
from kit.training.train import train_recipe
from kit.wording import counted

# The step at which the mean loss of the first N seeds is reported is N times this; evaluations of
# the first seed are counted from 1.
SEED_STEP = 10**6

Listen = Callable[[TrainingProgress], None]
Display = Callable[[str], AbstractContextManager[Listen]]


# Both end a training like Ctrl-C: it has not failed, and its run is kept.
class _PrunedError(BaseException):
    """The point is worse than most; the message says where that was seen."""


class _OutOfTimeError(BaseException):
    """The sweep's time has come to an end within a training."""


@contextmanager
def _no_display(_label: str) -> Generator[Listen]:
    yield lambda _: None


def run_sweep(
    sweep: Sweep,
    data: Path,
    runs: Path,
    *,
    trials: int = 20,
    max_hours: float = math.inf,
    display: Display = _no_display,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Train points until there are `trials` of them, or the time is up.

    Each training is an ordinary run in `runs`; one that is there already is used as it is. What is
    interrupted is continued by the next call, the training from its last checkpoint.

    A training that collapses, or that this device cannot do, ends its point, and the sweep goes on.

    Args:
        trials: points in all, with those of earlier calls.
        max_hours: a point that will not end within this time is not begun.
        display: shows a training, whose label it is given (see `kit.cli.progress`).

    Raises:
        HeldError: another process is working on the sweep, or on a run of it.
        KitError: the data or the backbone cannot be used; the database cannot; or not one point
            could be trained.
    """
    require_optuna()
    if is_distributed():
        raise KitError(
            "a sweep trains in one process, and torchrun started several",
            "Start it without torchrun. `kit sweep push` trains on Kaggle, two runs at once.",
        )
    deadline = time.monotonic() + max_hours * 3600
    with hold_lock(sweep.path), explain_database(sweep.database):
        study = SweepStudy(sweep)
        study.recover()
        _Search(sweep, study, data, runs, deadline, display, say).train_points(trials)
        _require_a_result(study.trials())


def _require_a_result(trials: list[SweepTrial]) -> None:
    """Raise KitError if points were tried, and each failed or collapsed."""
    failed = [trial for trial in trials if trial.state in (FAILED, COLLAPSED)]
    if failed and len(failed) == len(trials):
        raise KitError(
            f"no point could be trained, of {len(trials)}. The last one: {failed[-1].why}",
            "Change --set or --key.",
        )


@dataclass(frozen=True)
class _Search:
    """What all points of a sweep are trained with; `deadline` is as of `time.monotonic`."""

    sweep: Sweep
    study: SweepStudy
    data: Path
    runs: Path
    deadline: float
    display: Display
    say: Callable[[str], None]

    def train_points(self, limit: int) -> None:
        """Train one point after the other, the one that was interrupted first."""
        study = self.study
        while True:
            trial = study.unfinished()
            if trial is None and study.is_complete(limit):
                return None
            left = study.typical_seconds() - (trial.seconds if trial else 0.0)
            if time.monotonic() + max(0.0, left) >= self.deadline:
                return self.say_out_of_time()
            trial = trial or study.draw(limit)
            self.say(f"trial {trial.number}: {describe_point(trial.point)}")
            try:
                self.run_trial(trial)
            except _OutOfTimeError:
                return self.say_out_of_time()
            free_after_failure()

    def say_out_of_time(self) -> None:
        self.say("time limit reached. Run the same command again to continue")

    def run_trial(self, trial: SweepTrial) -> None:
        """Train the seeds of a point, and enter what became of it into the study."""
        number = trial.number
        twins = (other for other in self.study.trials()[:number] if other.point == trial.point)
        given_up = next((other for other in twins if other.state in (PRUNED, COLLAPSED)), None)
        if given_up:
            why = f"the same point as trial {given_up.number}"
            self.study.end(number, given_up.state, why)
            return self.say(f"trial {number}: {given_up.state}, {why}")

        try:
            started = time.monotonic()
            try:
                losses = self.train_seeds(trial)
            finally:
                self.study.add_seconds(number, time.monotonic() - started)
        except _PrunedError as error:
            state, why = PRUNED, str(error)
        except CollapseError as error:
            state, why = COLLAPSED, error.problem
        except (RecipeError, DeviceError) as error:
            state, why = FAILED, error.problem
        else:
            self.study.finish(number, tuple(losses))
            mean = sum(losses) / len(losses)
            return self.say(
                f"trial {number}: log loss {mean:.4f}, mean of {counted(len(losses), 'seed')}"
            )

        self.give_up_runs(trial, state, f"trial {number} of sweep {self.sweep.name}: {why}")
        self.study.end(number, state, why)
        return self.say(f"trial {number}: {state}, {why}")

    def train_seeds(self, trial: SweepTrial) -> list[float]:
        """Return the loss of each seed.

        Raises:
            _PrunedError, _OutOfTimeError: the point was ended.
            KitError: a training failed.
        """
        seeds = self.sweep.definition.seeds
        fold = self.sweep.definition.fold
        losses: list[float] = []
        for seed in range(seeds):
            recipe = self.sweep.recipe(trial.point, seed)
            run = Run(self.runs / recipe.run_name)
            report = self.evaluation_reporter(trial, recipe, run) if seed == 0 else None
            self.train(
                recipe, f"trial {trial.number}, seed {seed + 1} of {seeds}: {run.name}", report
            )
            loss = run_loss(run, fold)
            if loss is None:
                raise RunError(f"{run.path} is not finished", "Run the same command again.")
            losses.append(loss)

            mean = sum(losses) / len(losses)
            self.study.report(trial.number, SEED_STEP * len(losses), mean)
            if len(losses) < seeds and self.study.is_worse(losses):
                raise _PrunedError(
                    f"mean log loss {mean:.4f} after {len(losses)} of {seeds} seeds, worse than "
                    "the median of the points before it"
                )
        return losses

    def train(self, recipe: Recipe, label: str, report: Listen | None) -> None:
        """Train a run, or continue it, within the time there is."""
        with self.display(label) as show:

            def listen(progress: TrainingProgress) -> None:
                show(progress)
                if report and progress.log_loss is not None and progress.part == 1:
                    report(progress)
                if time.monotonic() > self.deadline:
                    raise _OutOfTimeError

            fold = self.sweep.definition.fold
            train_recipe(
                recipe, self.data, self.runs, fold, resume=True, listen=listen, say=self.say
            )

    def evaluation_reporter(self, trial: SweepTrial, recipe: Recipe, run: Run) -> Listen:
        """Return what compares each evaluation of a point's first training with those of others.

        Evaluations are counted, so that points of other batch sizes can be compared. Those of a
        training that is finished already are read from its files.
        """
        dataset = open_dataset(self.data)
        first = parse_folds(self.sweep.definition.fold, dataset.folds)[0]
        rows = len(dataset.fold_rows(first)[0])
        between = training_steps(recipe.train, rows).between_evaluations
        if run.fold(first).is_finished:
            for step, loss in _read_evaluations(run.fold(first)):
                self.study.report(trial.number, math.ceil(step / between), loss)

        def report(progress: TrainingProgress) -> None:
            assert progress.log_loss is not None, "only evaluations are reported"
            number = math.ceil(progress.step / between)
            ended = progress.step == progress.steps
            if self.study.report(trial.number, number, progress.log_loss) and not ended:
                raise _PrunedError(
                    f"log loss {progress.log_loss:.4f} at evaluation {number}, worse than the "
                    "median of the points before it"
                )

        return report

    def give_up_runs(self, trial: SweepTrial, state: str, why: str) -> None:
        """Delete the checkpoints of a point's unfinished runs, and write down why they ended."""
        for seed in range(self.sweep.definition.seeds):
            try:
                run = Run(self.runs / self.sweep.recipe(trial.point, seed).run_name)
            except RecipeError:
                # The values cannot be combined, and there is no run.
                return
            for checkpoints in run.path.glob(f"*/{CHECKPOINTS}"):
                folder = FoldDir(checkpoints.parent)
                if folder.is_finished:
                    continue
                remove_checkpoints(checkpoints)
                folder.attempts_path.unlink(missing_ok=True)
                if not any(folder.path.iterdir()):
                    folder.path.rmdir()
                run.mark_ended(state, why)


def _read_evaluations(folder: FoldDir) -> list[tuple[int, float]]:
    """Return step and validation loss of each evaluation of a finished training."""
    try:
        history = json.loads(read_text_file(folder.history_path))["log_history"]
        return [
            (int(e["step"]), float(e["eval_log_loss"])) for e in history if "eval_log_loss" in e
        ]
    # Without it the point is compared with others by its final loss only.
    except (OSError, ValueError, KeyError, TypeError):
        return []
