"""Which differences between models are more than luck: every pair on the same rows, resampling whole prompts."""

from dataclasses import dataclass

import numpy as np

from kit.evaluation.bootstrap import loss_differences
from kit.evaluation.metrics import row_losses
from kit.report.inputs import FLOOR, UNIFORM, ReportInputs

NOT_COMPARED = (
    UNIFORM,
    FLOOR,
)  # the prior is at least as good a constant; nothing can beat the floor


@dataclass(frozen=True)
class Pair:
    """The log loss of `model` less that of `other`, its 95% interval, and what `model` is: "better", "worse", ..."""

    model: str
    other: str
    mean: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Significance:
    """All ordered pairs of models on the rows of one split.

    Attributes:
        rows: which rows: "holdout", "out-of-fold" or "test".
        models: names, the lowest log loss first; the class prior is among them, as a reference or as a run.
        best: the one of them with the lowest log loss that is not a reference.
        pairs: as many as models, squared less once.
    """

    rows: str
    models: tuple[str, ...]
    best: str
    pairs: tuple[Pair, ...]

    def pair(self, model: str, other: str) -> Pair:
        """The comparison of two different models."""
        return next(pair for pair in self.pairs if (pair.model, pair.other) == (model, other))


def test_significance(evidence: ReportInputs, split: str) -> Significance | None:
    """Compares all models that have predictions of the split; None where no run has, or only one model in all."""
    rows = evidence.rows[split]
    if not evidence.having(split):
        return None
    models = [
        model for model in evidence.having(split, references=True) if model.name not in NOT_COMPARED
    ]
    if len(models) < 2:
        return None
    losses = np.stack([row_losses(model.predictions[split], rows.labels) for model in models])
    order = np.argsort(losses.mean(axis=1), kind="stable")
    found = loss_differences(losses[order], rows.groups)
    models = [models[place] for place in order]
    pairs = tuple(
        Pair(x.name, y.name, *found[i][j])
        for i, x in enumerate(models)
        for j, y in enumerate(models)
        if i != j
    )
    best = next(model.name for model in models if not model.reference)
    return Significance(rows.name, tuple(model.name for model in models), best, pairs)
