"""Fit the reference models: constants, answer length, TF-IDF, and boosted trees.

`FITS` has a function for each name in `BASELINES`. On this competition's data length alone reaches
a log loss of 1.058-1.065, a little above what a small fine-tuned network reaches, and TF-IDF with
signed and absolute differences 1.026-1.036, well below it.

All fits take labels (N,), or where rows have soft labels or weights (N, 3): probabilities times the
row's weight, as `Dataset.targets` returns either.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from kit.baselines import BASELINES, linear, tfidf
from kit.evaluation import metrics
from kit.evaluation.crossfit import crossfit_folds
from kit.task import CLASSES, SWAP

# The L2 penalty of the TF-IDF model, for a loss that is summed over rows.
L2_STRENGTH = 10.0

# TF-IDF differences are well below 1. Standardised features are scaled down to them, so that one
# penalty suits both.
DENSE_SCALE = 0.2

# Dense features are clipped at so many standard deviations.
OUTLIER = 5.0

MAX_LEAVES = 15
LEARNING_RATE = 0.05
MAX_TREES = 240


@dataclass(frozen=True)
class PairRows:
    """N rows as baselines see them; nothing here depends on a label or on another row.

    Attributes:
        a, b: features of answer A and of answer B, each (N, F).
        pair: features that are the same when the answers are swapped, (N, P).
        lengths: ln(1 + characters) of A and of B, (N, 2).
        groups: prompt groups (N,).
        counts: of A and of B, as `tfidf.count_ngrams` returns them; empty for models that do not
            read them.
    """

    a: np.ndarray
    b: np.ndarray
    pair: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    counts: tuple[tfidf.Counts, tfidf.Counts] = ((), ())

    def __len__(self) -> int:
        return len(self.a)

    def take(self, rows: np.ndarray) -> "PairRows":
        """Return the rows of these indices."""
        counts_a, counts_b = self.counts
        return PairRows(
            self.a[rows],
            self.b[rows],
            self.pair[rows],
            self.lengths[rows],
            self.groups[rows],
            (
                tuple(block[rows] for block in counts_a),
                tuple(block[rows] for block in counts_b),
            ),
        )

    @property
    def swapped(self) -> "PairRows":
        """The rows with their answers swapped."""
        return PairRows(
            self.b, self.a, self.pair, self.lengths[:, ::-1], self.groups, self.counts[::-1]
        )


# The columns of a linear model: those that change their sign when the answers are swapped (odd),
# and those that do not change (even).
Blocks = tuple[list[linear.Block], list[linear.Block]]


@dataclass(frozen=True)
class FittedBaseline:
    """A fitted baseline: its prediction (N, 3) of pairs, and its number of learnt parameters."""

    predict: Callable[[PairRows], np.ndarray]
    parameters: int


def fit_uniform(_: PairRows, __: np.ndarray) -> FittedBaseline:
    """Return a baseline that predicts 1/3 for each class; it needs neither rows nor labels."""
    return FittedBaseline(lambda rows: np.full((len(rows), len(CLASSES)), 1 / len(CLASSES)), 0)


def fit_prior(_: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Fit the shares of the classes among the training rows."""
    shares = metrics.class_prior(labels) if labels.ndim == 1 else labels.sum(axis=0) / labels.sum()
    return FittedBaseline(lambda rows: np.tile(shares, (len(rows), 1)), len(CLASSES))


def fit_length(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Fit a logistic regression on the difference of log lengths (absolute for ties)."""

    def blocks(rows: PairRows) -> Blocks:
        longer = (rows.lengths[:, :1] - rows.lengths[:, 1:]).astype(np.float32)
        return [longer], [np.abs(longer)]

    return _fit_linear(pairs, labels, blocks, penalty=1e-6)


def fit_tfidf(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Fit a linear model on signed (A or B) and absolute (tie) differences of TF-IDF and features.

    Frequencies, means and deviations are those of the training rows. The model is symmetric under a
    swap of the answers, which training on both orders and averaging over both would give too.
    """
    weights = tfidf.inverse_frequencies(pairs.counts)
    odd_scale = _deviation(pairs.a - pairs.b, 0.0)
    even_mean = _even_features(pairs).mean(axis=0, dtype=np.float64).astype(np.float32)
    even_scale = _deviation(_even_features(pairs), even_mean)

    def blocks(rows: PairRows) -> Blocks:
        a, b = (tfidf.weigh_ngrams(counts, weights) for counts in rows.counts)
        signed = [x - y for x, y in zip(a, b, strict=True)]
        scale = np.float32(DENSE_SCALE)
        odd = np.clip((rows.a - rows.b) / odd_scale, -OUTLIER, OUTLIER) * scale
        even = np.clip((_even_features(rows) - even_mean) / even_scale, -OUTLIER, OUTLIER) * scale
        return [*signed, odd], [*map(abs, signed), even]

    row_weight = len(labels) if labels.ndim == 1 else labels.sum()
    return _fit_linear(pairs, labels, blocks, penalty=L2_STRENGTH / row_weight)


def fit_boosted(pairs: PairRows, labels: np.ndarray) -> FittedBaseline:
    """Fit gradient-boosted trees on the dense features, in both orders of the answers.

    Predictions are averaged over both orders. The number of trees is the best for a fifth of the
    training prompts; the final trees are fitted to all rows. Where there is one class alone, or no
    second prompt to try the trees on, the fit is the class prior, averaged over both orders.
    """
    validation = crossfit_folds(pairs.groups) == 0
    train_rows = np.flatnonzero(~validation)
    validation_rows = np.flatnonzero(validation)
    if not len(validation_rows) or _count_classes(labels[train_rows]) < 2:
        prior = fit_prior(pairs, labels)
        return replace(
            prior,
            predict=lambda rows: (prior.predict(rows) + prior.predict(rows)[:, SWAP]) / 2,
        )

    trial = _fit_trees(MAX_TREES, pairs.take(train_rows), labels[train_rows])
    orders = _both_orders(pairs.take(validation_rows))
    rows, classes, weights = _hard_labels(labels[validation_rows])
    losses = []
    for stage in zip(*(trial.staged_predict_proba(order) for order in orders), strict=True):
        probabilities = _average_orders(trial, *stage)[rows]
        losses.append(np.average(metrics.row_losses(probabilities, classes), weights=weights))
    model = _fit_trees(int(np.argmin(losses)) + 1, pairs, labels)

    def predict(rows: PairRows) -> np.ndarray:
        return _average_orders(model, *map(model.predict_proba, _both_orders(rows)))

    # Trees may have fewer leaves, so this is an upper bound.
    parameters = model.n_iter_ * model.n_trees_per_iteration_ * MAX_LEAVES
    return FittedBaseline(predict, parameters)


FITS: dict[str, Callable[[PairRows, np.ndarray], FittedBaseline]] = dict(
    zip(BASELINES, (fit_uniform, fit_prior, fit_length, fit_tfidf, fit_boosted), strict=True)
)
NEEDS_NGRAMS = ("tfidf",)


def _fit_linear(
    pairs: PairRows,
    labels: np.ndarray,
    blocks: Callable[[PairRows], Blocks],
    penalty: float,
) -> FittedBaseline:
    model = linear.fit_symmetric(*blocks(pairs), labels, penalty)
    parameters = len(model.odd) + len(model.even)
    return FittedBaseline(lambda rows: model.predict(*blocks(rows)), parameters)


def _even_features(pairs: PairRows) -> np.ndarray:
    """Return the features that are the same when the answers are swapped, (N, 2 F + P)."""
    return np.hstack([np.abs(pairs.a - pairs.b), pairs.a + pairs.b, pairs.pair])


def _deviation(values: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """Return the deviation of each column from `mean`, (C,); 1 where the column is constant."""
    deviation = np.sqrt(np.square(values - mean).mean(axis=0, dtype=np.float64))
    return np.where(deviation > 0, deviation, 1).astype(np.float32)


def _both_orders(pairs: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the trees' features, (N, 3 F + P), of the rows as given and with answers swapped."""
    a = pairs.a
    b = pairs.b
    return np.hstack([a, b, a - b, pairs.pair]), np.hstack([b, a, b - a, pairs.pair])


def _fit_trees(trees: int, pairs: PairRows, labels: np.ndarray) -> HistGradientBoostingClassifier:
    # No early stopping by scikit-learn: its validation rows would be swapped copies of training
    # rows.
    model = HistGradientBoostingClassifier(
        learning_rate=LEARNING_RATE,
        max_iter=trees,
        max_leaf_nodes=MAX_LEAVES,
        min_samples_leaf=40,
        l2_regularization=1.0,
        max_features=0.5,
        early_stopping=False,
        random_state=0,
    )
    rows, classes, weights = _hard_labels(labels)
    features = np.vstack([order[rows] for order in _both_orders(pairs)])
    both_classes = np.concatenate([classes, np.array(SWAP)[classes]])
    both_weights = None if weights is None else np.tile(weights, 2)
    return model.fit(features, both_classes, both_weights)


def _count_classes(labels: np.ndarray) -> int:
    """Return how many classes there are to learn among rows and their swapped copies."""
    classes = _hard_labels(labels)[1]
    return len(np.union1d(classes, np.array(SWAP)[classes]))


def _hard_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Turn targets into one class a row, with weights, for models that take no soft labels.

    A row with soft labels is repeated for every class of probability above 0.

    Returns:
        The row, the class and the weight of each repetition; the weights are None if all are 1.
    """
    if labels.ndim == 1:
        return np.arange(len(labels)), labels, None
    rows, classes = np.nonzero(labels)
    return rows, classes, labels[rows, classes]


def _average_orders(
    model: HistGradientBoostingClassifier, as_given: np.ndarray, swapped: np.ndarray
) -> np.ndarray:
    """Return the mean (N, 3) of the predictions of both orders, (N, classes seen in training)."""
    # A class that no training row has gets probability 0.
    both = np.zeros((2, len(as_given), len(CLASSES)))
    both[0][:, model.classes_] = as_given
    both[1][:, model.classes_] = swapped
    return (both[0] + both[1][:, SWAP]) / 2
