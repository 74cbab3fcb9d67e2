"""The softmax and its log loss with the gradient: what every fit in this room minimises.

Class-major, (3, N): sums over three classes are then sums of whole rows, several times faster than
over a last axis.
"""

import numpy as np

from kit.evaluation.metrics import EPS


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (3, N) of logits (3, N); a constant added to all logits of a row changes
    nothing."""
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def softmax_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean log loss in nats, and its derivative by the logits, (3, N): probability less truth,
    over N.

    Labels (N,); or (N, 3), the probabilities of the classes times the weight of their row, and then
    the mean is over the weights.
    """
    places = np.arange(len(labels))
    shifted = logits - logits.max(axis=0)
    powers = np.exp(shifted)
    total = powers.sum(axis=0)
    if labels.ndim == 2:
        targets, weights = labels.T.astype(np.float64), labels.sum(axis=1, dtype=np.float64)
        whole = weights.sum()
        mean = float((weights * np.log(total) - (targets * shifted).sum(axis=0)).sum() / whole)
        return mean, (powers / total * weights - targets) / whole
    mean = float((np.log(total) - shifted[labels, places]).mean())
    powers /= total
    powers[labels, places] -= 1
    powers /= len(labels)
    return mean, powers


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Logits (3, N) of probabilities (N, 3), clipped at EPS where the log loss clips them too."""
    return np.log(np.maximum(probabilities.T, EPS, order="C"))
