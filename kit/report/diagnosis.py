"""What a model does beyond its one figure: how sure it is and whether rightly, what it confuses, whom it resembles."""

from dataclasses import dataclass

import numpy as np

from kit.evaluation.metrics import reliability_bins
from kit.report.inputs import ReportInputs
from kit.task import CLASSES


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of like confidence, the probability of the most probable class; means over the bin."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Diagnosis:
    """One model on the rows of one split.

    Attributes:
        bins: of the reliability diagram, in order, those with rows.
        confusion: rows by true class and by most probable class, in the order of `CLASSES`.
    """

    model: str
    bins: tuple[ReliabilityBin, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Correlation:
    """How alike the models' predictions are, 1 for the same; None of a model that always predicts the same."""

    models: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def diagnose_model(evidence: ReportInputs, split: str) -> tuple[Diagnosis, ...]:
    """Every model but the references."""
    labels, found = evidence.rows[split].labels, []
    for model in evidence.having(split):
        probabilities = model.predictions[split]
        bins = (
            ReliabilityBin(int(n), float(c), float(a))
            for n, c, a in zip(*reliability_bins(probabilities, labels), strict=True)
        )
        pairs = np.bincount(
            labels * len(CLASSES) + probabilities.argmax(axis=1), minlength=len(CLASSES) ** 2
        )
        confusion = tuple(map(tuple, pairs.reshape(len(CLASSES), -1).tolist()))
        found.append(Diagnosis(model.name, tuple(each for each in bins if each.rows), confusion))
    return tuple(found)


def correlate_errors(evidence: ReportInputs, split: str) -> Correlation:
    """Pearson's correlation of all probabilities, each class less its mean, so that a common prior does not count."""
    models = evidence.having(split)
    each = np.stack([model.predictions[split] for model in models])
    centred = (each - each.mean(axis=1, keepdims=True)).reshape(len(models), -1)
    size = np.sqrt((centred**2).sum(axis=1))
    constant = size < 1e-9
    unit = centred / np.where(constant, 1, size)[:, None]
    values = np.clip(unit @ unit.T, -1, 1)
    known = ~(constant[:, None] | constant)
    cells = tuple(
        tuple(float(v) if k else None for v, k in zip(*row, strict=True))
        for row in zip(values, known, strict=True)
    )
    return Correlation(tuple(model.name for model in models), cells)
