"""Learn from another model's out-of-fold probabilities beside the labels. Use `read_teachers`.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network": what a stronger model is unsure
of tells a smaller one more than a label does. A teacher's prediction of a row must come from a fold
that did not see the row's label; even so the student's validation is too good, because the teachers
of its training rows saw the labels of its validation rows (docs/concepts.md).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn import functional

from kit.data.dataset import Dataset
from kit.errors import DataError, RecipeError
from kit.predictions import make_predictions, read_predictions
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.task import CLASSES, EXTRA, ID
from kit.wording import counted


def read_teachers(sources: Sequence[Path], dataset: Dataset) -> pd.DataFrame:
    """Return the mean of the teachers' predictions of the dataset's scored rows.

    Args:
        sources: runs with all folds finished, or files of out-of-fold predictions.

    Raises:
        RunError: a run has no out-of-fold predictions.
        DataError: a file cannot be read, or lacks rows.
    """
    rows = dataset.train([ID, EXTRA]).to_pandas()
    ids = rows.loc[~rows[EXTRA], ID].to_numpy()
    total = np.zeros((len(ids), len(CLASSES)))
    for source in sources:
        frame = Run.open(source).oof if source.is_dir() else read_predictions(source)
        predictions = frame.set_index(ID)
        missing = ids[~np.isin(ids, predictions.index)]
        if len(missing):
            raise DataError(
                f"{source}: no prediction of {counted(len(missing), 'training row')}, the first is "
                f"id {missing[0]}",
                "Train the teacher with --fold all on the same rows.",
            )
        total += predictions.loc[ids, list(CLASSES)].to_numpy()
    return make_predictions(ids, total / len(sources))


def with_teacher(recipe: Recipe, predictions: pd.DataFrame) -> Recipe:
    """Return the recipe with the teacher's predictions as a part of it, and so of the run's name.

    Raises:
        RecipeError: the recipe is of another teacher, or gives it no weight.
    """
    digest = teacher_digest(predictions)
    if recipe.train.teacher not in ("", digest):
        raise RecipeError(
            f"train.teacher = {recipe.train.teacher}, but --teacher has the predictions {digest}",
            "Leave out train.teacher, or name the same teachers.",
        )
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, teacher=digest))


def teacher_digest(predictions: pd.DataFrame) -> str:
    """Return eight hex digits of a hash of prediction values and ids."""
    content = predictions.round(9).to_csv(index=False)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def teacher_targets(targets: np.ndarray, ids: np.ndarray, predictions: pd.DataFrame) -> np.ndarray:
    """Return the targets of all rows with the teacher's probabilities beside them, (N, 6) float32.

    Extra rows, which have no out-of-fold prediction, have their own target for a teacher.

    Args:
        targets: labels (N,), or probabilities times weights (N, 3); see `Dataset.targets`.
        ids: of all rows (N,).
    """
    own = np.eye(len(CLASSES))[targets] if targets.ndim == 1 else targets.astype(np.float64)
    taught = own / own.sum(1, keepdims=True).clip(1e-12)
    known = np.isin(ids, predictions[ID])
    taught[known] = predictions.set_index(ID).loc[ids[known], list(CLASSES)]
    return np.hstack([own, taught]).astype(np.float32)


def distillation_loss(
    loss: Callable[..., Tensor], weight: float, temperature: float
) -> Callable[..., Tensor]:
    """Return the loss (1 - w) · `loss` of the targets + w · T² · KL(teacher || student), softened.

    Both distributions are softened by the temperature T, whose square keeps the gradients' size.
    The function returned takes logits as `loss` does, and the labels (B, 6) of `teacher_targets`.
    """

    def compute(
        logits: Tensor | tuple[Tensor, Tensor], labels: Tensor, num_items_in_batch: Tensor | int
    ) -> Tensor:
        targets, teacher = labels.split(len(CLASSES), 1)
        own = loss(logits, targets, num_items_in_batch=num_items_in_batch)

        softened = (teacher.clamp_min(1e-9).log() / temperature).log_softmax(1)
        passes = logits if isinstance(logits, tuple) else (logits,)
        orders = [order for one in passes for order in (one.unbind(1) if one.ndim == 3 else [one])]
        divergence = sum(
            functional.kl_div(
                (order.float() / temperature).log_softmax(1),
                softened,
                reduction="none",
                log_target=True,
            ).sum(1)
            for order in orders
        ) / len(orders)
        by_weight = (divergence * targets.sum(1)).sum() / num_items_in_batch
        return (1 - weight) * own + weight * temperature**2 * by_weight

    return compute
