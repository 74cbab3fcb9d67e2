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
from kit.plotting import importing_matplotlib
from kit.task import CLASSES, SWAP

MAX_ROUNDS = 600
PATIENCE = 60  # rounds without a better validation loss
FOLDS = 4  # of the training prompts, to find the number of rounds
ENOUGH_ROWS = 10_000  # to validate on: with so many, not every fold is needed to find it

# LightGBM's result depends on the number of threads only without `deterministic`. Of the two ways
# to build histograms it would choose one by a trial; this one took less than half the time with
# 92,000 examples.
SETTINGS = {
    "objective": "multiclass",
    "num_class": len(CLASSES),
    "learning_rate": 0.1,
    "num_leaves": 7,
    "min_data_in_leaf": 80,
    "lambda_l2": 10.0,
    "max_bin": 63,
    "extra_trees": True,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "deterministic": True,
    "force_col_wise": True,
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
    reads_features: ClassVar[bool] = True
    settings: ClassVar[dict[str, Any]] = {
        **SETTINGS,
        "max_rounds": MAX_ROUNDS,
        "patience": PATIENCE,
        "folds": FOLDS,
        "enough_rows": ENOUGH_ROWS,
    }

    @classmethod
    def fit(cls, rows: PairRows, labels: np.ndarray, rounds: int | None = None) -> "Boosted":
        """Fit trees to all rows; where there is one class alone, or one prompt, there are none.

        Args:
            rows: the training rows, of known prompt groups.
            labels: (N,), or probabilities times weights (N, 3).
            rounds: trees of each class; by default as many as are best on validation rows of other
                prompts. These are a quarter of the rows or, where that is less than `ENOUGH_ROWS`,
                one quarter after the other.
        """
        examples, classes, weights = _hard_labels(labels)
        shares = np.bincount(classes, weights, len(CLASSES))
        shares = (shares + shares[list(SWAP)]) / (2 * shares.sum())
        folds = np.tile(crossfit_folds(rows.groups, FOLDS)[examples], 2)
        if len(np.unique(folds)) < 2 or np.count_nonzero(shares) < 2:
            return cls("", shares)

        lightgbm = import_lightgbm()
        data = lightgbm.Dataset(
            np.vstack([order[examples] for order in _both_orders(rows)]),
            np.concatenate([classes, np.array(SWAP)[classes]]),
            weight=None if weights is None else np.tile(weights, 2),
            free_raw_data=False,
        )
        rounds = rounds or _find_rounds(data, folds)
        return cls(lightgbm.train(SETTINGS, data, rounds).model_to_string(), shares)

    @property
    def rounds(self) -> int:
        """The number of trees of each class."""
        return len(re.findall(r"(?m)^Tree=", self.trees)) // len(CLASSES)

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


def _find_rounds(data: Any, folds: np.ndarray) -> int:
    """Return how many rounds are best on validation rows, which are those of one fold in turn."""
    used = np.unique(folds)
    sizes = np.bincount(folds)[used] / 2
    enough = 1 + np.searchsorted(sizes.cumsum(), ENOUGH_ROWS)
    splits = [
        (np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in used[:enough]
    ]

    lightgbm = import_lightgbm()
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    losses = lightgbm.cv(SETTINGS, data, MAX_ROUNDS, folds=splits, callbacks=[stop])
    return len(losses["valid multi_logloss-mean"])


def import_lightgbm() -> ModuleType:
    """Import LightGBM, which takes half a second and needs a library of the system.

    Raises:
        KitError: the library is missing.
    """
    try:
        with importing_matplotlib():
            import lightgbm
    except OSError as error:
        raise KitError(
            f"LightGBM cannot be loaded: {error}",
            "Install OpenMP: `apt install libgomp1` on Debian, `brew install libomp` on a Mac.",
        ) from error
    return lightgbm


def _both_orders(pairs: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the trees' features, (N, 3 F + P), of the rows as given and with answers swapped."""
    a = pairs.a
    b = pairs.b
    return np.hstack([a, b, a - b, pairs.pair]), np.hstack([b, a, b - a, pairs.pair])


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
