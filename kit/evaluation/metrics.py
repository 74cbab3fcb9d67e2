"""Compute the competition's log loss and the figures that explain it.

Use `score_predictions` for every figure at once. All functions take probabilities float64 (N, 3)
and labels int (N,) in the same order, as `evaluation.truth.align_to_truth` returns them.
"""

from dataclasses import asdict, dataclass

import numpy as np

from kit.task import CLASSES

# scikit-learn's clip: a probability of 0 on the true class costs -ln(EPS) = 36.04.
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class ClassScore:
    """The figures of one class; None where the denominator is 0 (absent, or never predicted)."""

    name: str
    count: int
    share: float
    mean_predicted: float
    log_loss: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Score:
    """The figures of a prediction, with the log losses of uniform and class-prior predictions."""

    rows: int
    log_loss: float
    accuracy: float
    calibration_error: float
    uniform_log_loss: float
    prior_log_loss: float
    per_class: tuple[ClassScore, ...]

    def as_dict(self) -> dict:
        """Return the figures as plain values that JSON can hold."""
        return asdict(self)


def row_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log loss of each row, (N,), in nats.

    That is minus the logarithm of the true class's probability, which is clipped to [EPS, 1 - EPS]
    in float64, exactly as `sklearn.metrics.log_loss` does. Rows are not normalised:
    `truth.align_to_truth` has already refused rows that do not sum to 1.
    """
    of_truth = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
    return -np.log(np.clip(of_truth, EPS, 1 - EPS))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the multi-class log loss in nats.

    Equal to `sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])`.
    """
    return float(row_losses(probabilities, labels).mean())


def softmax_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean log loss of softmax(logits) in nats and its gradient by the logits, (3, N).

    The gradient is (probability - target) / N. Logits are class-major because sums over three
    classes are then sums of whole rows, several times faster than over a last axis of length 3.

    Args:
        logits: (3, N).
        labels: (N,); or (N, 3), class probabilities times the row's weight, in which case the mean
            is weighted.
    """
    # Loss and gradient share one exponential. `scipy.special.log_softmax` and `softmax` would
    # compute it twice, and round the weighted loss differently.
    shifted = logits - logits.max(axis=0)
    powers = np.exp(shifted)
    total = powers.sum(axis=0)

    if labels.ndim == 2:
        targets = labels.T.astype(np.float64)
        weights = labels.sum(axis=1, dtype=np.float64)
        weight_sum = weights.sum()
        losses = weights * np.log(total) - (targets * shifted).sum(axis=0)
        return float(losses.sum() / weight_sum), (powers / total * weights - targets) / weight_sum

    rows = np.arange(len(labels))
    mean = float((np.log(total) - shifted[labels, rows]).mean())
    gradient = np.divide(powers, total, out=powers)
    gradient[labels, rows] -= 1
    gradient /= len(labels)
    return mean, gradient


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows whose most probable class is the true one; the first of ties."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def class_prior(labels: np.ndarray) -> np.ndarray:
    """Return the share of each class among the labels, (3,)."""
    return np.bincount(labels, minlength=len(CLASSES)) / len(labels)


def reliability_bins(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the reliability diagram of the most probable class.

    Bin m of M holds confidences in ((m-1)/M, m/M], as in Guo et al., "On Calibration of Modern
    Neural Networks" (2017).

    Returns:
        Row count, mean confidence and accuracy of each bin, each (bins,); the means of an empty bin
        are 0.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels

    # "left" makes bins open below and closed above; the clip puts a confidence of exactly 0 into
    # the first.
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)

    count = np.bincount(bin_of, minlength=bins)
    divisor = np.maximum(count, 1)
    mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / divisor
    bin_accuracy = np.bincount(bin_of, weights=correct, minlength=bins) / divisor
    return count, mean_confidence, bin_accuracy


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """Return the mean distance of confidence from accuracy; 0 is perfectly calibrated.

    The expected calibration error: top-label with 15 equal-width bins, the estimator of Guo et al.
    (2017), so that it compares with published figures. Sampling noise alone adds to it: a perfectly
    calibrated model shows about 0.03 on 1,000 rows and 0.006 on 25,000.
    """
    count, confidence, correct = reliability_bins(probabilities, labels, bins)
    return float((count * np.abs(confidence - correct)).sum() / len(labels))


def swap_gap(as_given: np.ndarray, swapped: np.ndarray) -> float:
    """Return the mean absolute change of a probability when the two answers change places.

    A measure of position bias: 0 means that the order of the answers does not matter.

    Args:
        as_given: probabilities (N, 3).
        swapped: those of the same rows with answers A and B swapped, their classes already swapped
            back.
    """
    return float(np.abs(as_given - swapped).mean())


def per_class(probabilities: np.ndarray, labels: np.ndarray) -> tuple[ClassScore, ...]:
    """Return each class's row count, true and predicted share, log loss, precision and recall."""
    losses = row_losses(probabilities, labels)
    predictions = probabilities.argmax(axis=1)

    scores = []
    for index, name in enumerate(CLASSES):
        actual = labels == index
        predicted = predictions == index
        hits = int((actual & predicted).sum())
        scores.append(
            ClassScore(
                name=name,
                count=int(actual.sum()),
                share=float(actual.mean()),
                mean_predicted=float(probabilities[:, index].mean()),
                log_loss=float(losses[actual].mean()) if actual.any() else None,
                precision=hits / int(predicted.sum()) if predicted.any() else None,
                recall=hits / int(actual.sum()) if actual.any() else None,
            )
        )
    return tuple(scores)


def score_predictions(probabilities: np.ndarray, labels: np.ndarray) -> Score:
    """Return every figure of a prediction.

    The class-prior reference uses the shares of these very labels: no constant prediction could
    score better.
    """
    prior = np.broadcast_to(class_prior(labels), probabilities.shape)
    return Score(
        rows=len(labels),
        log_loss=log_loss(probabilities, labels),
        accuracy=accuracy(probabilities, labels),
        calibration_error=expected_calibration_error(probabilities, labels),
        uniform_log_loss=float(np.log(len(CLASSES))),
        prior_log_loss=log_loss(prior, labels),
        per_class=per_class(probabilities, labels),
    )
