"""Split a training over Kaggle's sessions by its estimated hours. Use `plan_sessions`."""

import math
from dataclasses import dataclass, replace

from kit.costs.devices import T4
from kit.costs.disk import training_disk
from kit.costs.estimate import estimate_training
from kit.costs.lengths import RowLengths, competition_lengths
from kit.costs.sessions import KAGGLE_OUTPUT_BYTES, OVERHEAD_HOURS, sessions_needed
from kit.costs.sizes import ModelSizes, model_sizes
from kit.errors import BackboneError, KitError
from kit.kaggle.job import SESSION_HOURS
from kit.model.backbones import resolve_backbone
from kit.recipe.spec import Recipe

# A T4 session has two of them.
SESSION_GPUS = 2


@dataclass(frozen=True)
class SessionPlan:
    """How a training is spread over sessions.

    Attributes:
        folds: the value of `--fold` of each session.
        fold_hours: estimated hours of one fold; 0 where there is no estimate.
        summary: the plan in words.
    """

    folds: list[str]
    fold_hours: float
    summary: str


def plan_sessions(
    recipe: Recipe, fold: str, folds: int, max_hours: float, gpu: str = "t4"
) -> SessionPlan:
    """Decide how many sessions a training needs, on rows like the competition's.

    Where all folds do not fit into one session of `max_hours`, or into its output, each gets a
    session of its own.

    Raises:
        KitError: not even one fold fits; the hint says what does.
    """
    if gpu != "t4":
        return SessionPlan([fold], 0.0, f"{recipe.name}: no estimate of hours on Kaggle's CPU")

    try:
        sizes = model_sizes(resolve_backbone(recipe.backbone).config, recipe.backbone)
    except BackboneError as error:
        return SessionPlan([fold], 0.0, f"{recipe.name}: no estimate of its hours: {error.problem}")
    lengths = competition_lengths(recipe, folds)
    estimate = estimate_training(recipe, sizes, lengths, T4, SESSION_GPUS)
    hours = estimate.hours
    if hours + OVERHEAD_HOURS > max_hours:
        raise KitError(
            f"one fold of {recipe.name} takes about {hours:.1f} h on two T4, more than a session of"
            f" --max-hours {max_hours:g} has",
            _what_would_fit(recipe, sizes, lengths, hours, max_hours),
        )
    output = training_disk(sizes, recipe, lengths.valid_rows).output
    if output > KAGGLE_OUTPUT_BYTES:
        raise KitError(
            f"a model of {recipe.name} takes {output / 1e9:.0f} GB, and Kaggle keeps"
            f" {KAGGLE_OUTPUT_BYTES / 1e9:g} GB of a session's output",
            "Choose a smaller backbone.",
        )

    count = folds if fold == "all" else 1
    summary = f"{recipe.name}: about {hours:.1f} h a fold on two T4"
    if count > 1:
        summary += f", {estimate.hours_of(count):.1f} h in all"
    summary += " (estimated)"
    if sessions_needed(hours, count, max_hours, output, estimate.shared_hours) == 1:
        return SessionPlan([fold], hours, summary)

    reason = f"{max_hours:g} h"
    if estimate.hours_of(count) + OVERHEAD_HOURS <= max_hours:
        reason = f"the {KAGGLE_OUTPUT_BYTES / 1e9:g} GB of one session's output"
    summary += f"; all {folds} folds do not fit into {reason}: one kernel for each, two at once"
    return SessionPlan([str(number) for number in range(folds)], hours, summary)


def _what_would_fit(
    recipe: Recipe, sizes: ModelSizes, lengths: RowLengths, hours: float, max_hours: float
) -> str:
    """Return a hint: more hours where Kaggle gives them, or a shorter training."""
    needed = math.ceil((hours + OVERHEAD_HOURS) * 2) / 2
    if needed <= SESSION_HOURS:
        return f"Use --max-hours {needed:g}."

    # Evaluations do not become fewer in proportion, so a share that should fit may not.
    spec = recipe.train
    for percent in range(95, 0, -5):
        if spec.max_steps:
            key, value = "max_steps", spec.max_steps * percent // 100
        else:
            key, value = "epochs", math.floor(spec.epochs * percent / 10) / 10
        if not value:
            break
        shorter = replace(recipe, train=replace(spec, **{key: value}))
        estimate = estimate_training(shorter, sizes, lengths, T4, SESSION_GPUS)
        if estimate.hours + OVERHEAD_HOURS <= max_hours:
            return f"Use --set train.{key}={value:g}, or a smaller backbone."
    return "Use a smaller backbone, or fewer tokens: --set encode.max_tokens=…"
