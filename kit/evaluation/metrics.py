"""What a prediction is worth: log loss as the competition computes it, and the figures that explain it.

Everything takes probabilities float64 (N, 3) and labels int (N,) in the same order; `evaluation.truth.align` makes them.
"""

from dataclasses import asdict, dataclass

import numpy as np

from kit.task import CLASSES

EPS = float(
    np.finfo(np.float64).eps
)  # scikit-learn's clip: a probability of 0 on the truth costs -ln(EPS) = 36.04


@dataclass(frozen=True)
class ClassScore:
    """One class; `None` where there is nothing to divide by (no row of the class, or none predicted as it)."""

    name: str
    count: int
    share: float
    mean_predicted: float
    log_loss: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Score:
    """A prediction's figures on its rows, with the two references that need no model beside them."""

    rows: int
    log_loss: float
    accuracy: float
    calibration_error: float
    uniform_log_loss: float
    prior_log_loss: float
    per_class: tuple[ClassScore, ...]

    def as_dict(self) -> dict:
        """Plain values that JSON can hold."""
        return asdict(self) | {"per_class": [asdict(one) for one in self.per_class]}


def row_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss of each row, (N,), in nats: minus the logarithm of the probability given to its true class.

    Clipped to [EPS, 1 - EPS] in float64, exactly as `sklearn.metrics.log_loss` clips. Like it, this does not
    normalise rows: a frame is validated first (`truth.align` refuses rows that do not sum to 1).
    """
    truth = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    return -np.log(np.clip(truth, EPS, 1 - EPS))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Multi-class log loss in nats, equal to `sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])`."""
    return float(row_losses(probabilities, labels).mean())


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose most probable class is the true one; among equals the first class is taken."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def class_prior(labels: np.ndarray) -> np.ndarray:
    """The share of each class among the labels, (3,)."""
    return np.bincount(labels, minlength=len(CLASSES)) / len(labels)


def reliability_bins(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reliability diagram of the most probable class: rows, mean confidence and accuracy per bin, each (bins,).

    Bin m of M holds confidences in ((m-1)/M, m/M], as in Guo et al., "On Calibration of Modern Neural Networks"
    (2017). The means of an empty bin are 0.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    at_least_one = np.maximum(count, 1)
    return (
        count,
        np.bincount(place, weights=confidence, minlength=bins) / at_least_one,
        np.bincount(place, weights=correct, minlength=bins) / at_least_one,
    )


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """How far confidence is from accuracy, averaged over the rows: 0 is calibrated, in units of probability.

    Top-label, equal-width bins, 15 of them: the estimate of Guo et al. (2017), so that it compares with published
    ones. Noise alone adds to it: a perfectly calibrated model shows about 0.03 on 1,000 rows, 0.006 on 25,000.
    """
    count, confidence, correct = reliability_bins(probabilities, labels, bins)
    return float((count * np.abs(confidence - correct)).sum() / len(labels))


def swap_gap(as_given: np.ndarray, swapped: np.ndarray) -> float:
    """How much a model minds which answer comes first: the mean absolute difference of its probabilities.

    Args:
        as_given: probabilities (N, 3).
        swapped: those of the same rows with answers A and B swapped, classes already put back in place.
    """
    return float(np.abs(as_given - swapped).mean())


def per_class(probabilities: np.ndarray, labels: np.ndarray) -> tuple[ClassScore, ...]:
    """For each class its rows, the share predicted and true, the log loss of its rows, precision and recall."""
    losses, predicted = row_losses(probabilities, labels), probabilities.argmax(axis=1)
    scores = []
    for number, name in enumerate(CLASSES):
        of_class, called = labels == number, predicted == number
        hits = int((of_class & called).sum())
        scores.append(
            ClassScore(
                name=name,
                count=int(of_class.sum()),
                share=float(of_class.mean()),
                mean_predicted=float(probabilities[:, number].mean()),
                log_loss=float(losses[of_class].mean()) if of_class.any() else None,
                precision=hits / int(called.sum()) if called.any() else None,
                recall=hits / int(of_class.sum()) if of_class.any() else None,
            )
        )
    return tuple(scores)


def score_predictions(probabilities: np.ndarray, labels: np.ndarray) -> Score:
    """Every figure at once. The class prior is that of these very labels, the best any constant could do."""
    constant = np.broadcast_to(class_prior(labels), probabilities.shape)
    return Score(
        rows=len(labels),
        log_loss=log_loss(probabilities, labels),
        accuracy=accuracy(probabilities, labels),
        calibration_error=expected_calibration_error(probabilities, labels),
        uniform_log_loss=float(np.log(len(CLASSES))),
        prior_log_loss=log_loss(constant, labels),
        per_class=per_class(probabilities, labels),
    )
