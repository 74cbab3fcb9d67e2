"""Fit gradient-boosted trees that see every row in both orders of its answers. Use `Boosted.fit`.

The trees are LightGBM's (Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree",
2017), kept in its own text format, which any later version of it reads.
"""

import functools
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from kit.baselines.rows import PairRows
from kit.errors import KitError
from kit.evaluation.crossfit import crossfit_folds
from kit.evaluation.metrics import class_prior
from kit.task import CLASSES, SWAP

MAX_ROUNDS = 800
PATIENCE = 100  # rounds without a better validation loss

# LightGBM's result depends on the number of threads only without `deterministic`; of the two ways
# to build histograms, it would otherwise choose the faster one by a trial.
SETTINGS = {
    "objective": "multiclass",
    "num_class": len(CLASSES),
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_data_in_leaf": 80,
    "lambda_l2": 10.0,
    "feature_fraction_bynode": 0.3,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Boosted:
    """Boosted trees on the dense features of A, of B, their difference, and those of the pair.

    Predictions are averaged over both orders of the answers.

    Attributes:
        trees: the model in LightGBM's text format; empty where there was nothing to try trees on.
        shares: of the classes, averaged over both orders: the prediction without trees.
    """

    trees: str
    shares: np.ndarray

    reads_ngrams: ClassVar[bool] = False

    @classmethod
    def fit(cls, rows: PairRows, labels: np.ndarray) -> "Boosted":
        """Fit trees, as many as are best for a fifth of the training prompts, to all rows.

        Where there is one class alone, or no second prompt to try the trees on, there are no trees.
        """
        shares = class_shares(labels)
        shares = (shares + shares[list(SWAP)]) / 2

        validation = crossfit_folds(rows.groups) == 0
        trial_rows = np.flatnonzero(~validation)
        validation_rows = np.flatnonzero(validation)
        if not len(validation_rows) or _count_classes(labels[trial_rows]) < 2:
            return cls("", shares)

        lightgbm = import_lightgbm()
        train = _tree_data(rows.take(trial_rows), labels[trial_rows])
        valid = _tree_data(rows.take(validation_rows), labels[validation_rows], train)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        trial = lightgbm.train(SETTINGS, train, MAX_ROUNDS, valid_sets=[valid], callbacks=[stop])
        rounds = max(1, trial.best_iteration)
        booster = lightgbm.train(SETTINGS, _tree_data(rows, labels), rounds)
        return cls(booster.model_to_string(), shares)

    @property
    def parameters(self) -> int:
        """The number of leaves."""
        return sum(map(int, re.findall(r"(?m)^num_leaves=(\d+)$", self.trees)))

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3)."""
        if not self.trees or not len(rows):
            return np.tile(self.shares, (len(rows), 1))
        as_given, swapped = map(self._booster.predict, _both_orders(rows))
        return (as_given + swapped[:, SWAP]) / 2

    @functools.cached_property
    def _booster(self) -> Any:
        """The trees in memory, always from their text, so that a loaded model is the fitted one.

        Raises:
            ValueError: the text is not a model of LightGBM.
        """
        lightgbm = import_lightgbm()
        try:
            return lightgbm.Booster(model_str=self.trees)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"LightGBM cannot read its trees: {error}") from error


def import_lightgbm() -> ModuleType:
    """Import LightGBM, which takes half a second and needs a library of the system.

    Raises:
        KitError: the library is missing.
    """
    try:
        import lightgbm
    except OSError as error:
        raise KitError(
            f"LightGBM cannot be loaded: {error}",
            "Install OpenMP: `apt install libgomp1` on Debian, `brew install libomp` on a Mac.",
        ) from error
    return lightgbm


def class_shares(targets: np.ndarray) -> np.ndarray:
    """Return the share of each class, (3,), of labels (N,) or weighted soft labels (N, 3)."""
    return class_prior(targets) if targets.ndim == 1 else targets.sum(axis=0) / targets.sum()


def _both_orders(pairs: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the trees' features, (N, 3 F + P), of the rows as given and with answers swapped."""
    a = pairs.a
    b = pairs.b
    return np.hstack([a, b, a - b, pairs.pair]), np.hstack([b, a, b - a, pairs.pair])


def _tree_data(pairs: PairRows, labels: np.ndarray, reference: Any = None) -> Any:
    """Return a Dataset of LightGBM with every row in both orders.

    Args:
        reference: the training rows, for validation rows.
    """
    rows, classes, weights = _hard_labels(labels)
    features = np.vstack([order[rows] for order in _both_orders(pairs)])
    both_classes = np.concatenate([classes, np.array(SWAP)[classes]])
    both_weights = None if weights is None else np.tile(weights, 2)
    return import_lightgbm().Dataset(features, both_classes, reference, both_weights)


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
