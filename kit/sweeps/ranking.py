"""Rank the points of a sweep by their mean loss over seeds. Use `rank_points`.

The loss of a run is the one that `kit runs` shows, of the validation rows and not calibrated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.run import Run, mean_over_rows, parse_folds
from kit.storage.lock import lock_holder
from kit.sweeps.study import FINISHED, UNFINISHED, SweepStudy, SweepTrial, explain_database
from kit.sweeps.sweep import Sweep

LEVEL = 0.95


@dataclass(frozen=True)
class RankedPoint:
    """A point of a sweep, as `kit sweep show` lists it.

    Attributes:
        trial: its number, from 0.
        point: values by key.
        state: "finished", "pruned", "collapsed", "failed", "unfinished", "training", or how many of
            its seeds are finished.
        losses: of the seeds that are finished.
        mean: of these, None without any.
        low, high: the 95% t-interval of the mean over seeds, None below two seeds.
        minutes: that the sweep spent on it.
        runs: their names, by seed.
        why: why it did not finish.
    """

    trial: int
    point: Mapping[str, Any]
    state: str
    losses: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None
    minutes: float
    runs: tuple[str, ...]
    why: str


def rank_points(sweep: Sweep, runs: Path) -> list[RankedPoint]:
    """Return all points: those that are finished by rising mean loss, then the others.

    Points whose runs are in `runs` by now, as from Kaggle, count as finished.

    Raises:
        KitError: Optuna is not installed, or the database or a run is damaged.
    """
    if not sweep.database.is_file():
        return []
    with explain_database(sweep.database):
        trials = SweepStudy(sweep).trials()
    busy = bool(lock_holder(sweep.path))
    ranked = [_describe_point(sweep, trial, runs, busy) for trial in trials]
    return sorted(
        ranked, key=lambda r: (r.state != FINISHED, r.mean or 0 if r.state == FINISHED else r.trial)
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of a mean by Student's t, None for fewer than two values."""
    if len(values) < 2:
        return None
    import numpy as np
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1))
    half /= len(values) ** 0.5
    return mean - half, mean + half


def point_losses(sweep: Sweep, point: Mapping[str, Any], runs: Path) -> list[float | None]:
    """Return the log loss of each seed's run, None where it is not finished.

    Raises:
        RunError: a run is damaged.
    """
    losses = []
    for seed in range(sweep.definition.seeds):
        run = Run(runs / sweep.recipe(point, seed).run_name)
        losses.append(run_loss(run, sweep.definition.fold))
    return losses


def run_loss(run: Run, fold: str) -> float | None:
    """Return the log loss of a run over the rows of its folds, None if one is not finished.

    Raises:
        RunError: the run is damaged.
    """
    if not run.origin_path.is_file():
        return None
    parts = [run.fold(number) for number in parse_folds(fold, run.option("folds", int))]
    if not all(part.is_finished for part in parts):
        return None
    return mean_over_rows(parts, "log_loss")


def _describe_point(sweep: Sweep, trial: SweepTrial, runs: Path, busy: bool) -> RankedPoint:
    seeds = sweep.definition.seeds
    losses = trial.losses if trial.state == FINISHED else ()
    state = trial.state
    if state == UNFINISHED and len(trial.point) == len(sweep.definition.keys):
        losses = tuple(x for x in point_losses(sweep, trial.point, runs) if x is not None)
        if len(losses) == seeds:
            state = FINISHED
        elif busy:
            state = "training"
        elif losses:
            state = f"{len(losses)} of {seeds} seeds"
    low, high = mean_interval(losses) or (None, None)
    return RankedPoint(
        trial=trial.number,
        point=trial.point,
        state=state,
        losses=losses,
        mean=sum(losses) / len(losses) if losses else None,
        low=low,
        high=high,
        minutes=trial.seconds / 60,
        runs=_run_names(sweep, trial),
        why=trial.why,
    )


def _run_names(sweep: Sweep, trial: SweepTrial) -> tuple[str, ...]:
    """Return the names of a point's runs; none where its values cannot be combined."""
    try:
        return tuple(
            sweep.recipe(trial.point, seed).run_name for seed in range(sweep.definition.seeds)
        )
    except KitError:
        return ()
