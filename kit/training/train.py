"""Train all folds of a run, within the time there is. Use `train_recipe`."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kit.costs.steps import rows_per_pass
from kit.data.dataset import Dataset, open_dataset
from kit.errors import CollapseError, RecipeError
from kit.fold_dir import FoldDir
from kit.launcher import ignore_partial_launch
from kit.model.backbones import ResolvedBackbone, resolve_backbone
from kit.model.device import join_processes
from kit.model.memory import free_after_failure
from kit.recipe.spec import Recipe
from kit.run import Run, make_origin, parse_folds
from kit.storage.atomic import write_json
from kit.storage.lock import hold_lock
from kit.task import HOLDOUT
from kit.training.arguments import recipe_settings_only
from kit.training.callbacks import TrainingProgress, decide_together
from kit.training.checkpoints import CHECKPOINTS, remove_checkpoints
from kit.training.fold import TrainingOptions, train_fold
from kit.training.loggers import choose_loggers
from kit.training.setup import check_trainable
from kit.training.teacher import read_teachers, with_teacher
from kit.training.trial import try_recipe

# Checkpoints of a collapsed attempt are renamed to this before they are deleted.
DISCARDED = f"{CHECKPOINTS}-of-"

# The distance between the seeds of two attempts: no attempt shares a seed with another run of the
# recipe.
SEED_STEP = 1000


@recipe_settings_only()
def train_recipe(
    recipe: Recipe,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    *,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    guard: bool = True,
    restarts: int = 0,
    report_to: str | Sequence[str] | None = None,
    scratch: Path | None = None,
    max_hours: float = math.inf,
    listen: Callable[[TrainingProgress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train `recipe` on the processed rows in `data`.

    Finished folds are left alone, so the same call continues an "all" that stopped. With every fold
    finished, the out-of-fold predictions of all rows are written to the run's oof.csv.

    Args:
        fold: "holdout", a fold's number, or "all".
        teachers: runs or files whose out-of-fold predictions are learned from beside the labels.
            A run keeps their mean, so that it is continued without them.
        restarts: how often a training that collapses is tried again, from fresh weights, at half
            the rates and with another seed.
        max_hours: after this time the current fold ends with its best checkpoint; a fold that would
            not finish in the time left is not started.
        report_to: loggers, such as "tensorboard,wandb" (see `choose_loggers`).
        resume, guard, scratch: see `TrainingOptions`.

    Returns:
        `run` (its folder), `parts` (metrics by fold), and with every fold finished `oof`.

    Raises:
        KitError: the recipe, data, backbone or device cannot be used, or a training failed; nothing
            that was there is lost.
    """
    if note := ignore_partial_launch():
        say(note)
    loggers = choose_loggers(report_to)
    options = TrainingOptions(
        resume=resume,
        guard=guard,
        report_to=loggers,
        scratch=scratch,
        deadline=time.monotonic() + max_hours * 3600,
        on_progress=listen,
        log=say,
        note=_say_once(say),
    )

    # Everything that can be refused is refused before a run directory exists.
    dataset = open_dataset(data)
    folds = parse_folds(fold, dataset.folds)
    predictions = read_teachers(teachers, dataset) if teachers else None
    if predictions is not None:
        recipe = with_teacher(recipe, predictions)
    elif recipe.train.teacher and not Run(runs / recipe.run_name).teacher_path.is_file():
        raise RecipeError(
            f"the recipe learns from a teacher ({recipe.train.teacher}), and none is named",
            "Add --teacher with the runs or files, or --set train.teacher=''.",
        )
    backbone = resolve_backbone(recipe.backbone)
    check_trainable(recipe, backbone)
    _warn_about_ascii(backbone, dataset, say)
    ranks = join_processes()
    rows_per_pass(recipe.train, ranks.num_processes)

    # A run that exists has passed the trial when it began. The first fold loads the model again:
    # 4 s for DeBERTa-v3-base and 6 s for -large on two cores. To go on with the trial's would mean
    # to undo what the trial did to the random numbers, and to hold both in one function.
    begins = not Run(runs / recipe.run_name).origin_path.exists()
    if begins:
        try_recipe(recipe, backbone, dataset, say)
        free_after_failure()

    with ranks.main_process_first():
        run = Run.create(runs, recipe, make_origin(dataset, backbone.digest))
        if predictions is not None:
            run.keep_teacher(predictions)

    with run.leave_none_empty(begins and ranks.is_main_process):
        _train_folds(recipe, backbone, dataset, run, folds, restarts, options)
    return run.summarise(write=ranks.is_main_process)


def _train_folds(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    run: Run,
    folds: Sequence[int | str],
    restarts: int,
    options: TrainingOptions,
) -> None:
    """Train the folds that are not finished, as far as the time allows."""
    ranks = join_processes()
    longest = 0.0
    for position, number in enumerate(folds):
        too_late = time.monotonic() + longest > options.deadline
        if not run.fold(number).is_finished and decide_together(too_late):
            remaining = ", ".join(map(str, folds[position:]))
            options.log(
                f"time limit reached, remaining folds: {remaining}. Run the same command again to "
                "continue"
            )
            return

        started = time.monotonic()
        folder = run.fold(number)
        later = [other for other in folds[position + 1 :] if not run.fold(other).is_finished]
        place = {"fold": folder.name, "part": position + 1, "parts": len(folds)}
        watched = _tell_of_fold(options, place, len(later), longest)
        with hold_lock(run.path, folder.name) if ranks.is_main_process else nullcontext():
            _train_with_restarts(recipe, backbone, dataset, run, number, restarts, watched)
        longest = max(longest, time.monotonic() - started)
        free_after_failure()


def _say_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return `say` without what it has said before."""
    said: set[str] = set()

    def note(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return note


def _tell_of_fold(
    options: TrainingOptions, place: dict[str, Any], later: int, longest: float
) -> TrainingOptions:
    """Return the options of one fold: its listener learns which it is, and when the last ends.

    Args:
        place: `fold`, `part` and `parts` of `TrainingProgress`.
        later: the number of folds to train after this one.
        longest: the seconds that the longest fold before this one took.
    """
    started = time.monotonic()

    def report(progress: TrainingProgress) -> None:
        now = time.monotonic()
        each = max(longest, now - started + progress.seconds_left)
        left = min(progress.seconds_left + later * each, max(0.0, options.deadline - now))
        options.on_progress(dataclasses.replace(progress, **place, seconds_left_in_all=left))

    return dataclasses.replace(options, on_progress=report, folds=1 + later, fold_seconds=longest)


def attempt_recipe(recipe: Recipe, attempt: int) -> Recipe:
    """Return the recipe of attempt number `attempt`, from 0: rates halved as often, a new seed."""
    spec = recipe.train
    factor = 0.5**attempt
    changed = dataclasses.replace(
        spec,
        lr=spec.lr * factor,
        head_lr=spec.head_lr * factor,
        seed=(spec.seed + SEED_STEP * attempt) % 2**32,
    )
    return dataclasses.replace(recipe, train=changed)


def _train_with_restarts(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    run: Run,
    fold: int | str,
    restarts: int,
    options: TrainingOptions,
) -> None:
    """Train a fold, and again where it collapses, up to `restarts` times in all.

    Attempts are recorded in the fold's tried.json, so a resumed training continues with the attempt
    that was interrupted.

    Raises:
        CollapseError: the last attempt collapsed, too; its checkpoints are kept.
    """
    folder = run.fold(fold)
    ranks = join_processes()
    _remove_discarded(folder)
    if ranks.is_main_process:
        folder.collapse_path.unlink(missing_ok=True)
    attempts = folder.attempts
    while True:
        current = attempt_recipe(recipe, len(attempts))
        try:
            train_fold(current, backbone, dataset, run, fold, options, attempts)
            break
        except CollapseError as error:
            too_late = time.monotonic() > options.deadline
            if decide_together(len(attempts) >= restarts or too_late):
                if ranks.is_main_process:
                    write_json(folder.collapse_path, {"why": error.problem})
                raise
            attempts = [*attempts, {**_rates(current), "why": error.problem}]

        free_after_failure()
        rates = _rates(attempt_recipe(recipe, len(attempts)))
        described = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in rates.items()
        )
        options.log(f"{attempts[-1]['why']}; attempt {len(attempts) + 1} with {described}")
        _discard_attempt(folder, attempts)
    folder.attempts_path.unlink(missing_ok=True)


def _rates(recipe: Recipe) -> dict[str, Any]:
    """Return what attempts differ in."""
    return {"lr": recipe.train.lr, "head_lr": recipe.train.head_lr, "seed": recipe.train.seed}


def _discard_attempt(folder: FoldDir, attempts: list[dict[str, Any]]) -> None:
    """Record the attempts and remove the last one's checkpoints.

    The checkpoints are renamed before the record is written: a kill in between must not let the
    next attempt continue from them.
    """
    ranks = join_processes()
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        (folder.path / CHECKPOINTS).rename(folder.path / f"{DISCARDED}{len(attempts)}")
        write_json(folder.attempts_path, attempts)
        _remove_discarded(folder)
    ranks.wait_for_everyone()


def _remove_discarded(folder: FoldDir) -> None:
    """Remove checkpoints of earlier attempts, also those that a killed process left behind."""
    if join_processes().is_main_process:
        for path in folder.path.glob(f"{DISCARDED}*"):
            remove_checkpoints(path)


def _warn_about_ascii(
    backbone: ResolvedBackbone, dataset: Dataset, say: Callable[[str], None]
) -> None:
    """Say that a multilingual backbone would be trained on rows stripped to ASCII."""
    multilingual = backbone.record is not None and backbone.record.multilingual
    if multilingual and dataset.manifest["options"]["text"] == "ascii":
        say(
            f"{backbone.name} reads a hundred languages, but these rows were stripped to ASCII; "
            "`kit preprocess --text unicode` keeps them"
        )
