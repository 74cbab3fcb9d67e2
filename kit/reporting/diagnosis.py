"""Look behind a model's log loss: its reliability, its confidence, its confusions, its folds.

Use `diagnose_models`, `correlate_models` and `spread_over_folds`.
"""

from dataclasses import dataclass

import numpy as np

from kit.evaluation.metrics import row_losses
from kit.reporting.inputs import ReportInputs
from kit.task import CLASSES, ID

BINS = 10  # of a reliability curve
MIN_BIN_ROWS = 20  # fewer rows say nothing about a share
BARS = 20  # of a confidence histogram
Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows that were given similar probabilities of a class.

    Attributes:
        rows: their number.
        predicted: the mean probability.
        observed: the share of the rows that are of the class.
        low, high: Wilson's 95% interval of that share, which takes rows as independent.
    """

    rows: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class ConfidenceBar:
    """Rows whose most probable class has a probability from `low` to `high`.

    Attributes:
        rows: their number.
        correct: how many of them are of that class.
    """

    low: float
    high: float
    rows: int
    correct: int


@dataclass(frozen=True)
class Diagnosis:
    """One model on the rows of one split.

    Attributes:
        reliability: by class, in the order of `CLASSES`, bins of equally many rows by rising
            probability; one bin for a model that always predicts the same.
        confidence: the histogram of the probability of the most probable class, from 1/3 to 1.
        confusion: row counts by true class and by most probable class, in the order of `CLASSES`.
    """

    model: str
    reliability: tuple[tuple[ReliabilityBin, ...], ...]
    confidence: tuple[ConfidenceBar, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Correlation:
    """Correlations of the models' predictions, None for a model that always predicts the same."""

    models: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class FoldSpread:
    """A model's log loss on each fold's rows, by the fold's folder name, and its spread.

    Attributes:
        deviation: the sample standard deviation over the folds.
    """

    model: str
    losses: dict[str, float]
    deviation: float


def diagnose_models(inputs: ReportInputs, split: str) -> tuple[Diagnosis, ...]:
    """Compute reliability, confidence and confusion of every model that is not a reference."""
    labels = inputs.rows[split].known_labels
    diagnoses = []
    for model in inputs.models_with(split):
        probabilities = model.predictions[split]
        reliability = tuple(
            _reliability_bins(probabilities[:, number], labels == number)
            for number in range(len(CLASSES))
        )

        # Unlike `confusion[...] += 1`, `np.add.at` counts every row of the same pair of classes.
        confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
        diagnoses.append(
            Diagnosis(
                model.name,
                reliability,
                _confidence_bars(probabilities, labels),
                tuple(map(tuple, confusion.tolist())),
            )
        )
    return tuple(diagnoses)


def _reliability_bins(probability: np.ndarray, hits: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """Return bins of equally many rows, from a class's probability (N,) and whether it is true."""
    count = max(1, min(BINS, len(hits) // MIN_BIN_ROWS))
    if np.ptp(probability) < 1e-9:
        count = 1
    order = np.argsort(probability, kind="stable")
    bins = []
    for members in np.array_split(order, count):
        rows = len(members)
        observed = float(hits[members].mean())
        # Wilson, Journal of the American Statistical Association 22(158), 1927.
        centre = (observed + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
        half = np.sqrt(observed * (1 - observed) / rows + Z**2 / (4 * rows**2))
        half = float(half * Z / (1 + Z**2 / rows))
        predicted = float(probability[members].mean())
        low = max(0.0, centre - half)
        bins.append(ReliabilityBin(rows, predicted, observed, low, min(1.0, centre + half)))
    return tuple(bins)


def _confidence_bars(probabilities: np.ndarray, labels: np.ndarray) -> tuple[ConfidenceBar, ...]:
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(1 / 3, 1, BARS + 1)
    # Rounding can leave a probability a little below 1/3 or above 1.
    confidence = np.clip(confidence, 1 / 3, 1)
    rows = np.histogram(confidence, edges)[0].tolist()
    hits = np.histogram(confidence[correct], edges)[0].tolist()
    ends = edges.tolist()
    return tuple(map(ConfidenceBar, ends[:-1], ends[1:], rows, hits))


def correlate_models(inputs: ReportInputs, split: str) -> Correlation:
    """Compute Pearson's correlation of the probabilities of every two models.

    Each class is centred by its own mean first, so that a class prior that the models share does
    not count as likeness.
    """
    models = inputs.models_with(split)
    probabilities = np.stack([model.predictions[split] for model in models])  # (M, N, 3)
    centred = probabilities - probabilities.mean(axis=1, keepdims=True)
    centred = centred.reshape(len(models), -1)

    norms = np.sqrt((centred**2).sum(axis=1))
    # A constant prediction has no correlation; its norm is not exactly 0 because of rounding.
    constant = norms < 1e-9
    unit = centred / np.where(constant, 1, norms)[:, None]
    values = np.clip(unit @ unit.T, -1, 1).astype(object)
    values[constant[:, None] | constant] = None
    return Correlation(tuple(model.name for model in models), tuple(map(tuple, values.tolist())))


def spread_over_folds(inputs: ReportInputs) -> tuple[FoldSpread, ...]:
    """Score every model on the rows of each fold; nothing unless there are several folds."""
    rows = inputs.rows["valid"]
    if inputs.processed is None or len(rows.parts) < 2:
        return ()
    train_ids = inputs.processed.train([ID])[ID].to_numpy()
    members = {
        part: np.isin(
            rows.ids, train_ids[inputs.processed.fold_rows(int(part.removeprefix("fold")))[1]]
        )
        for part in rows.parts
    }
    spreads = []
    for model in inputs.models_with("valid"):
        losses = row_losses(model.predictions["valid"], rows.known_labels)
        by_part = {part: float(losses[inside].mean()) for part, inside in members.items()}
        spreads.append(
            FoldSpread(model.name, by_part, float(np.std(list(by_part.values()), ddof=1)))
        )
    return tuple(spreads)
