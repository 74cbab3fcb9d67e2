"""Train a sweep's points on Kaggle's kernels, two at a time, and collect them. Use `push_sweep`.

The points are drawn before anything is known of them: kernels do not wait for each other. They fill
the space evenly, by a Sobol sequence, and none is pruned.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from kit.errors import RecipeError
from kit.kaggle.client import Client
from kit.kaggle.fan_out import JobOutcome, fan_out
from kit.kaggle.job import Job
from kit.recipe.spec import Recipe
from kit.storage.lock import hold_lock
from kit.sweeps.ranking import point_losses
from kit.sweeps.space import spread_points
from kit.sweeps.study import FAILED, UNFINISHED, SweepStudy, explain_database
from kit.sweeps.sweep import Sweep


def sweep_recipes(sweep: Sweep, trials: int) -> list[Recipe]:
    """Return the recipe of each training of `trials` points, without those that are no recipe.

    Raises:
        RecipeError: no point is a recipe.
    """
    definition = sweep.definition
    recipes = []
    problem = None
    for point in spread_points(definition.keys, trials, definition.sampler_seed):
        try:
            recipes += [sweep.recipe(point, seed) for seed in range(definition.seeds)]
        except RecipeError as error:
            problem = error
    if problem and not recipes:
        raise problem
    return recipes


def push_sweep(
    client: Client,
    sweep: Sweep,
    jobs: Sequence[Job],
    trials: int,
    runs: Path,
    folder: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> list[JobOutcome]:
    """Train `trials` points on Kaggle, and enter those into the study whose runs are collected.

    It can be stopped and started again, as `fan_out` can.

    Args:
        jobs: the trainings of `sweep_recipes` for so many points.
        folder: of the notebooks.

    Raises:
        HeldError: another process is working on the sweep.
        KitError: as `fan_out`; or the database cannot be read or written.
    """
    with hold_lock(sweep.path), explain_database(sweep.database):
        study = SweepStudy(sweep)
        study.recover()
        begun = [trial.point for trial in study.trials()]
        for point in spread_points(sweep.definition.keys, trials, sweep.definition.sampler_seed):
            if point not in begun:
                study.begin(point)
        outcomes = fan_out(client, jobs, runs, folder, say=say)
        _settle(sweep, study, runs)
    return outcomes


def _settle(sweep: Sweep, study: SweepStudy, runs: Path) -> None:
    """Finish the trials whose runs are all there."""
    for trial in study.trials():
        if trial.state != UNFINISHED:
            continue
        try:
            losses = [loss for loss in point_losses(sweep, trial.point, runs) if loss is not None]
        except RecipeError as error:
            study.end(trial.number, FAILED, error.problem)
            continue
        if len(losses) == sweep.definition.seeds:
            study.finish(trial.number, tuple(losses))
