"""Test which differences between models are more than chance, by a paired bootstrap of prompts.

Use `compare_pairs`; see `kit.evaluation.bootstrap` for the method.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kit.evaluation.bootstrap import loss_differences
from kit.evaluation.metrics import row_losses
from kit.reporting.inputs import ReportInputs
from kit.reporting.models import FLOOR, UNIFORM
from kit.reporting.rows import count_rows

Verdict = Literal["better", "worse", "can't tell"]

# These two are not compared in pairs: the class prior is at least as good a constant as uniform,
# and no model can beat the floor.
NOT_COMPARED = (UNIFORM, FLOOR)


@dataclass(frozen=True)
class PairedDifference:
    """The log loss of `model` minus that of `other`, with its 95% bootstrap interval.

    The verdict says what `model` is against `other`.
    """

    model: str
    other: str
    mean: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Significance:
    """All ordered pairs of models on the rows of one split.

    Attributes:
        rows: "holdout", "out-of-fold" or "test".
        count: the number of these rows.
        models: names by rising log loss; the class prior is among them, as reference or as run.
        best: the name of the model with the lowest log loss that is not a reference.
        pairs: one for each ordered pair of two different models.
    """

    rows: str
    count: int
    models: tuple[str, ...]
    best: str
    pairs: tuple[PairedDifference, ...]

    @property
    def title(self) -> str:
        """The rows in words, such as "599 out-of-fold rows"."""
        return count_rows(self.rows, self.count)

    def pair(self, model: str, other: str) -> PairedDifference:
        """Return the comparison of two different models."""
        return next(pair for pair in self.pairs if (pair.model, pair.other) == (model, other))


def compare_pairs(inputs: ReportInputs, split: str) -> Significance | None:
    """Compare every two models with predictions of the split by a paired bootstrap.

    Returns:
        None where the split was predicted by references only, or by one model in all.
    """
    models = [
        model
        for model in inputs.models_with(split, references=True)
        if model.name not in NOT_COMPARED
    ]
    # References alone need no test: what they are worth is known.
    if len(models) < 2 or not inputs.models_with(split):
        return None

    rows = inputs.rows[split]
    losses = np.stack([row_losses(model.predictions[split], rows.known_labels) for model in models])
    # A stable sort leaves models with equal losses in the order of the table.
    order = np.argsort(losses.mean(axis=1), kind="stable")
    losses = losses[order]
    models = [models[position] for position in order]

    differences = loss_differences(losses, rows.groups)
    pairs = tuple(
        PairedDifference(model.name, other.name, *differences[i][j])
        for i, model in enumerate(models)
        for j, other in enumerate(models)
        if i != j
    )
    best = next(model.name for model in models if not model.reference)
    names = tuple(model.name for model in models)
    return Significance(rows.name, len(rows.ids), names, best, pairs)
