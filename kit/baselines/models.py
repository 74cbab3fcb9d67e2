"""Reference models that a network has to beat: constants, answer length, TF-IDF, and trees on length and format.

On this competition's data length alone is worth 1.058-1.065 and TF-IDF with signed and absolute differences
1.026-1.036, a little above and well below what a small fine-tuned network reaches.

They learn from labels (N,), or where rows have soft labels or weights from (N, 3): probabilities times their row's
weight, as `Processed.targets` gives both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from kit.baselines import linear
from kit.baselines import tfidf as ngrams
from kit.evaluation import metrics
from kit.evaluation.crossfit import crossfit_folds
from kit.task import CLASSES, SWAP

STRENGTH = 10.0  # of the L2 penalty, against a sum over rows
DENSE = 0.2  # of the features' size beside TF-IDF, whose differences are well below 1: the penalty then suits both
OUTLIER = 5.0  # standard deviations at which features are cut off
LEAVES, RATE, MOST_TREES = 15, 0.05, 240


@dataclass(frozen=True)
class PairRows:
    """N rows as baselines see them. Nothing here depends on a label or on another row.

    Attributes:
        a, b: features of answer A and of answer B, each (N, F).
        pair: features that swapping the answers leaves as they are, (N, P).
        lengths: ln(1 + characters) of A and of B, (N, 2).
        groups: prompt groups (N,).
        counts: n-grams of A and of B (`ngrams.count`), or None for models that do not read them.
    """

    a: np.ndarray
    b: np.ndarray
    pair: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    counts: tuple[ngrams.Counts, ngrams.Counts] | None = None

    def __len__(self) -> int:
        return len(self.a)

    def take(self, rows: np.ndarray) -> "PairRows":
        """Some of the rows, by their numbers."""
        counts = self.counts and tuple(tuple(kind[rows] for kind in side) for side in self.counts)
        return PairRows(
            self.a[rows],
            self.b[rows],
            self.pair[rows],
            self.lengths[rows],
            self.groups[rows],
            counts,
        )

    @property
    def swapped(self) -> "PairRows":
        """The rows with their answers swapped."""
        return PairRows(
            self.b,
            self.a,
            self.pair,
            self.lengths[:, ::-1],
            self.groups,
            self.counts and self.counts[::-1],
        )


@dataclass(frozen=True)
class FittedBaseline:
    """A fitted baseline: probabilities (N, 3) of pairs, and how many numbers it has learnt (of trees, at most)."""

    predict: Callable[[PairRows], np.ndarray]
    parameters: int


def fit_uniform(_: PairRows, __: np.ndarray) -> FittedBaseline:
    """A third each."""
    return FittedBaseline(lambda other: np.full((len(other), len(CLASSES)), 1 / len(CLASSES)), 0)


def fit_prior(_: PairRows, labels: np.ndarray) -> FittedBaseline:
    """The classes' shares among the training rows."""
    shares = metrics.class_prior(labels) if labels.ndim == 1 else labels.sum(axis=0) / labels.sum()
    return FittedBaseline(lambda other: np.tile(shares, (len(other), 1)), len(CLASSES))


def fit_length(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Logistic regression on the difference of log lengths; the tie, on its absolute value."""

    def blocks(some: PairRows) -> tuple[list[np.ndarray], list[np.ndarray]]:
        longer = (some.lengths[:, :1] - some.lengths[:, 1:]).astype(np.float32)
        return [longer], [np.abs(longer)]

    return _linear(pairs, labels, blocks, penalty=1e-6)


def fit_tfidf(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """A linear model on TF-IDF of words and character runs and on the features: signed and absolute differences.

    Frequencies, means and deviations are those of the training rows. It cannot favour a place (`symmetric`), which is
    what training on both orders and averaging over both would give.
    """
    weights = ngrams.inverse_frequencies(pairs.counts)
    odd_scale = _scale(pairs.a - pairs.b, 0.0)
    mean = _even(pairs).mean(axis=0, dtype=np.float64).astype(np.float32)
    even_scale = _scale(_even(pairs), mean)

    def blocks(some: PairRows) -> tuple[list[linear.Block], list[linear.Block]]:
        a, b = (ngrams.weigh_ngrams(side, weights) for side in some.counts)
        signed = [x - y for x, y in zip(a, b, strict=True)]
        odd = np.clip((some.a - some.b) / odd_scale, -OUTLIER, OUTLIER) * np.float32(DENSE)
        even = np.clip((_even(some) - mean) / even_scale, -OUTLIER, OUTLIER) * np.float32(DENSE)
        return [*signed, odd], [*map(abs, signed), even]

    return _linear(
        pairs,
        labels,
        blocks,
        penalty=STRENGTH / (len(labels) if labels.ndim == 1 else labels.sum()),
    )


def fit_boosted(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Gradient-boosted trees on the features, trained on both orders of each row and averaged over both.

    The number of trees is the best for a fifth of the training prompts; then all training rows are fitted.
    """
    inner = crossfit_folds(pairs.groups) == 0
    fitting, judging = np.flatnonzero(~inner), np.flatnonzero(inner)
    trial, held = (
        _trees(MOST_TREES, pairs.take(fitting), labels[fitting]),
        _both_orders(pairs.take(judging)),
    )
    stages = zip(*(trial.staged_predict_proba(order) for order in held), strict=True)
    rows, classes, weights = _hard(labels[judging])
    losses = [
        np.average(metrics.row_losses(_average(trial, *stage)[rows], classes), weights=weights)
        for stage in stages
    ]
    model = _trees(int(np.argmin(losses)) + 1, pairs, labels)

    def predict(other: PairRows) -> np.ndarray:
        return _average(model, *map(model.predict_proba, _both_orders(other)))

    return FittedBaseline(predict, model.n_iter_ * model.n_trees_per_iteration_ * LEAVES)


FITS: dict[str, Callable[[PairRows, np.ndarray], FittedBaseline]] = {
    "uniform": fit_uniform,
    "prior": fit_prior,
    "length": fit_length,
    "tfidf": fit_tfidf,
    "boosted": fit_boosted,
}
READS_NGRAMS = ("tfidf",)


def _linear(
    pairs: PairRows,
    labels: np.ndarray,
    blocks: Callable[[PairRows], tuple[list[linear.Block], list[linear.Block]]],
    penalty: float,
) -> FittedBaseline:
    fitted = linear.fit_symmetric(*blocks(pairs), labels, penalty)
    return FittedBaseline(
        lambda other: fitted.predict(*blocks(other)), len(fitted.odd) + len(fitted.even)
    )


def _even(pairs: PairRows) -> np.ndarray:
    """Features that a swap leaves as they are, (N, 2 F + P)."""
    return np.hstack([np.abs(pairs.a - pairs.b), pairs.a + pairs.b, pairs.pair])


def _scale(values: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """The deviation of each column from `mean`, (C,); 1 where it is constant."""
    deviation = np.sqrt(np.square(values - mean).mean(axis=0, dtype=np.float64))
    return np.where(deviation > 0, deviation, 1).astype(np.float32)


def _both_orders(pairs: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """What trees see, (N, 3 F + P), of the rows as they are and with the answers swapped."""
    a, b = pairs.a, pairs.b
    return np.hstack([a, b, a - b, pairs.pair]), np.hstack([b, a, b - a, pairs.pair])


def _trees(number: int, pairs: PairRows, labels: np.ndarray) -> HistGradientBoostingClassifier:
    model = HistGradientBoostingClassifier(
        learning_rate=RATE,
        max_iter=number,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=40,
        l2_regularization=1.0,
        max_features=0.5,
        early_stopping=False,  # its own held-out rows would be copies of training rows in the other order
        random_state=0,
    )
    rows, classes, weights = _hard(labels)
    both = np.vstack([order[rows] for order in _both_orders(pairs)])
    twice = None if weights is None else np.tile(weights, 2)
    return model.fit(both, np.concatenate([classes, np.array(SWAP)[classes]]), twice)


def _hard(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows, a class of each and its weight: a row with soft labels is there once for every class that it may be of."""
    if labels.ndim == 1:
        return np.arange(len(labels)), labels, None
    rows, classes = np.nonzero(labels)
    return rows, classes, labels[rows, classes]


def _average(
    model: HistGradientBoostingClassifier, as_is: np.ndarray, swapped: np.ndarray
) -> np.ndarray:
    """The mean of two predictions (N, classes seen in training), the second of swapped answers: (N, 3)."""
    both = np.zeros((2, len(as_is), len(CLASSES)))
    both[0][:, model.classes_], both[1][:, model.classes_] = as_is, swapped
    return (both[0] + both[1][:, SWAP]) / 2
