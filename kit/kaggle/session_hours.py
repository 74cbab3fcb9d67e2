"""Estimate the hours of a training on Kaggle, and split it over sessions. Use `plan_sessions`."""

import math
from bisect import bisect_left

from kit.errors import KitError
from kit.kaggle.job import SESSION_HOURS
from kit.recipe.spec import Recipe

# Hours of one epoch over four fifths of the rows on the two T4, with its validations, and the token
# limit of a sequence that they are for. They are estimated by a roofline, not measured.
_EPOCH_HOURS = {
    "electra-small": (0.04, 512),
    "electra-base": (0.25, 512),
    "roberta": (0.25, 512),
    "xlm-roberta": (0.35, 512),
    "deberta": (0.2, 768),
    "deberta-base": (0.5, 768),
    "mdeberta": (0.55, 768),
    "modernbert-base": (0.6, 1024),
    "electra": (1.25, 512),
    "roberta-large": (1.25, 512),
    "modernbert-large": (1.85, 1024),
    "reward-deberta": (1.9, 512),
    "deberta-large": (2.2, 768),
}
_TRAIN_ROWS = 57_477

# The mean length of a sequence, in tokens, by the limit that cuts it.
_MEAN_TOKENS = ((0, 0), (256, 221), (512, 329), (768, 379), (1024, 404), (8192, 450))

# Prompt and both answers in one sequence, in both orders; adapters beside frozen weights.
_CROSS_FACTOR = 2.0
_ADAPTER_FACTOR = 1.3

# Start, preprocessing and the end of a session.
_OVERHEAD_HOURS = 0.25


def estimate_fold_hours(recipe: Recipe, folds: int = 5) -> float:
    """Return the hours of one of `folds` folds on Kaggle's two T4; 0 if nothing is known."""
    if recipe.backbone not in _EPOCH_HOURS:
        return 0.0
    hours, tokens = _EPOCH_HOURS[recipe.backbone]

    spec = recipe.train
    rows = _TRAIN_ROWS * (folds - 1) / folds
    epochs = spec.max_steps * spec.batch_size / rows if spec.max_steps else spec.epochs
    hours *= epochs * rows / (_TRAIN_ROWS * 4 / 5)
    hours *= _mean_tokens(recipe.encode.max_tokens) / _mean_tokens(tokens)
    if recipe.model.shape == "cross":
        hours *= _CROSS_FACTOR
    if spec.lora_rank:
        hours *= _ADAPTER_FACTOR
    return hours


def plan_sessions(
    recipe: Recipe, fold: str, folds: int, max_hours: float, gpu: str = "t4"
) -> list[str]:
    """Return the value of `--fold` of each session that a training needs.

    Where all folds do not fit into one session of `max_hours`, each gets a session of its own.

    Raises:
        KitError: not even one fold fits; the hint says what does.
    """
    hours = 0.0 if gpu == "none" else estimate_fold_hours(recipe, folds)
    if not hours:
        return [fold]
    available = max_hours - _OVERHEAD_HOURS
    if hours > available:
        raise KitError(
            f"one fold of {recipe.name} takes about {hours:.1f} h on two T4, more than a session of"
            f" --max-hours {max_hours:g} has",
            _what_would_fit(recipe, hours, max_hours),
        )
    if fold != "all" or folds * hours <= available:
        return [fold]
    return [str(number) for number in range(folds)]


def _what_would_fit(recipe: Recipe, hours: float, max_hours: float) -> str:
    """Return a hint: more hours where Kaggle gives them, or fewer epochs."""
    needed = math.ceil((hours + _OVERHEAD_HOURS) * 2) / 2
    if needed <= SESSION_HOURS:
        return f"Use --max-hours {needed:g}."
    available = max(0.0, max_hours - _OVERHEAD_HOURS)
    if recipe.train.max_steps:
        steps = math.floor(recipe.train.max_steps * available / hours)
        return f"Use --set train.max_steps={steps}, or a smaller backbone."
    epochs = math.floor(recipe.train.epochs * available / hours * 10) / 10
    return f"Use --set train.epochs={epochs:g}, or a smaller backbone."


def _mean_tokens(limit: int) -> float:
    """Interpolate the mean length of a sequence that is cut at `limit` tokens."""
    limits = [known for known, _ in _MEAN_TOKENS]
    place = min(max(1, bisect_left(limits, limit)), len(limits) - 1)
    (below, low), (above, high) = _MEAN_TOKENS[place - 1 : place + 1]
    return low + (high - low) * min(1.0, (limit - below) / (above - below))
