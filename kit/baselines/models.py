"""Fit the reference models: constants, answer length, TF-IDF, and boosted trees.

`MODELS` has a class for each name in `BASELINES`, and `baseline_run_name` names its run. Its `fit`
takes rows and labels, its `predict` rows; `saved` keeps its fields on disk. On this competition's
data length alone reaches a log loss of 1.058-1.065, a little above what a small fine-tuned network
reaches, and TF-IDF with signed and absolute differences 1.026-1.036, well below it.

All fits take labels (N,), or where rows have soft labels or weights (N, 3): probabilities times the
row's weight, as `Dataset.targets` returns either.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from kit.baselines import BASELINES, linear, tfidf
from kit.baselines.rows import FEATURE_NAMES, SIMILARITY_FEATURE_NAMES, PairRows
from kit.baselines.trees import Boosted
from kit.errors import KitError
from kit.evaluation.metrics import class_prior
from kit.task import CLASSES

# Format of the saved files; raised when an older kit could not read them any more, or when features
# of the same names would be computed in another way.
FORMAT = 1

# The L2 penalty of the TF-IDF model, for a loss that is summed over rows.
L2_STRENGTH = 10.0

# That of the model of lengths, whose three coefficients are hardly penalised.
LENGTH_L2 = 1e-6

# TF-IDF differences are well below 1. Standardised features are scaled down to them, so that one
# penalty suits both.
DENSE_SCALE = 0.2

# Dense features are clipped at so many standard deviations.
OUTLIER = 5.0

# The columns of a linear model: those that change their sign when the answers are swapped (odd),
# and those that do not change (even).
Blocks = tuple[list[linear.Block], list[linear.Block]]


class ClassicalModel(Protocol):
    """A fitted model, a dataclass of arrays and texts that say all about it.

    Attributes:
        reads_ngrams: whether its rows need `counts`.
        reads_features: whether it learns from the features of the answers and of the pair.
        settings: everything but the rows that decides the fit, as JSON can hold it.
    """

    reads_ngrams: ClassVar[bool]
    reads_features: ClassVar[bool]
    settings: ClassVar[dict[str, Any]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def parameters(self) -> int:
        """The number of learnt parameters."""
        ...

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3) float64."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The model that gives each class 1/3."""

    reads_ngrams: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {}
    parameters: ClassVar[int] = 0

    @classmethod
    def fit(cls, *_: object) -> "Uniform":
        """Return the model; it needs neither rows nor labels."""
        return cls()

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3)."""
        return np.full((len(rows), len(CLASSES)), 1 / len(CLASSES))


@dataclass(frozen=True)
class Prior:
    """The shares of the classes among the training rows, (3,)."""

    shares: np.ndarray

    reads_ngrams: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {}
    parameters: ClassVar[int] = len(CLASSES)

    @classmethod
    def fit(cls, _: PairRows, labels: np.ndarray) -> "Prior":
        """Count the labels."""
        return cls(class_prior(labels) if labels.ndim == 1 else labels.sum(axis=0) / labels.sum())

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3)."""
        return np.tile(self.shares, (len(rows), 1))


@dataclass(frozen=True)
class Length:
    """A logistic regression on the difference of log lengths (absolute for ties)."""

    odd: np.ndarray
    even: np.ndarray

    reads_ngrams: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"l2": LENGTH_L2}

    @classmethod
    def fit(cls, rows: PairRows, labels: np.ndarray) -> "Length":
        """Fit the three coefficients, hardly penalised."""
        fitted = linear.fit_symmetric(*cls._blocks(rows), labels, penalty=LENGTH_L2)
        return cls(fitted.odd, fitted.even)

    @property
    def parameters(self) -> int:
        """The number of learnt parameters."""
        return len(self.odd) + len(self.even)

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3)."""
        return linear.SymmetricClassifier(self.odd, self.even).predict(*self._blocks(rows))

    @staticmethod
    def _blocks(rows: PairRows) -> Blocks:
        longer = (rows.lengths[:, :1] - rows.lengths[:, 1:]).astype(np.float32)
        return [longer], [np.abs(longer)]


@dataclass(frozen=True)
class Tfidf:
    """A linear model on signed (A or B) and absolute (tie) differences of TF-IDF and features.

    It is symmetric under a swap of the answers, which training on both orders and averaging over
    both would give too.

    Attributes:
        frequencies: the weight of each n-gram, (kinds, tfidf.WIDTH).
        odd_scale: deviations of the odd features, (F,).
        even_mean, even_scale: means and deviations of the even features, (2 F + P,).
        odd, even: coefficients.
    """

    frequencies: np.ndarray
    odd_scale: np.ndarray
    even_mean: np.ndarray
    even_scale: np.ndarray
    odd: np.ndarray
    even: np.ndarray

    reads_ngrams: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    settings: ClassVar[dict[str, Any]] = {
        "l2": L2_STRENGTH,
        "dense_scale": DENSE_SCALE,
        "outlier": OUTLIER,
        "kinds": tfidf.KINDS,
        "width": tfidf.WIDTH,
        "min_texts": tfidf.MIN_TEXTS,
    }

    @classmethod
    def fit(cls, rows: PairRows, labels: np.ndarray) -> "Tfidf":
        """Fit frequencies, means, deviations and coefficients to training rows."""
        even_features = _even_features(rows)
        even_mean = even_features.mean(axis=0, dtype=np.float64).astype(np.float32)
        unfitted = cls(
            frequencies=np.stack(tfidf.inverse_frequencies(rows.counts)),
            odd_scale=_deviation(rows.a - rows.b, 0.0),
            even_mean=even_mean,
            even_scale=_deviation(even_features, even_mean),
            odd=np.zeros(0),
            even=np.zeros(0),
        )
        row_weight = len(labels) if labels.ndim == 1 else labels.sum()
        penalty = L2_STRENGTH / row_weight
        fitted = linear.fit_symmetric(*unfitted._blocks(rows), labels, penalty)
        return replace(unfitted, odd=fitted.odd, even=fitted.even)

    @property
    def parameters(self) -> int:
        """The number of learnt parameters."""
        return len(self.odd) + len(self.even)

    def predict(self, rows: PairRows) -> np.ndarray:
        """Return probabilities (N, 3)."""
        return linear.SymmetricClassifier(self.odd, self.even).predict(*self._blocks(rows))

    def _blocks(self, rows: PairRows) -> Blocks:
        a, b = (tfidf.weigh_ngrams(counts, list(self.frequencies)) for counts in rows.counts)
        signed = [x - y for x, y in zip(a, b, strict=True)]
        scale = np.float32(DENSE_SCALE)
        odd = np.clip((rows.a - rows.b) / self.odd_scale, -OUTLIER, OUTLIER) * scale
        even = (_even_features(rows) - self.even_mean) / self.even_scale
        return [*signed, odd], [*map(abs, signed), np.clip(even, -OUTLIER, OUTLIER) * scale]


MODELS = dict(zip(BASELINES, (Uniform, Prior, Length, Tfidf, Boosted), strict=True))


def check_baseline(name: str, embeds: bool = False) -> None:
    """Check that there is a baseline of this name, and that it reads features where it `embeds`.

    Raises:
        KitError: there is none, or an encoder's similarities would change nothing.
    """
    if name not in MODELS:
        raise KitError(f"no baseline {name!r}", "Choose one of: " + ", ".join(MODELS) + ".")
    if embeds and not MODELS[name].reads_features:
        others = [each for each, model in MODELS.items() if model.reads_features]
        raise KitError(
            f"{name} reads no features, so that an encoder's would change nothing",
            f"Leave out --embed, or fit {' or '.join(others)}.",
        )


def baseline_run_name(name: str, embedder: str = "") -> str:
    """Return the name of a baseline's run: its own, and a hash of its settings and features.

    So models of two kinds never share a folder, or a dataset on Kaggle, which is named after it.

    Args:
        embedder: a hash of the encoder whose similarities it reads, if it does.

    Raises:
        KitError: there is no such baseline, or it does not read similarities.
    """
    check_baseline(name, embeds=bool(embedder))
    features = [embedder, SIMILARITY_FEATURE_NAMES] if embedder else FEATURE_NAMES
    content = json.dumps([FORMAT, MODELS[name].settings, features], sort_keys=True)
    return f"baseline-{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _even_features(pairs: PairRows) -> np.ndarray:
    """Return the features that are the same when the answers are swapped, (N, 2 F + P)."""
    return np.hstack([np.abs(pairs.a - pairs.b), pairs.a + pairs.b, pairs.pair])


def _deviation(values: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """Return the deviation of each column from `mean`, (C,); 1 where the column is constant."""
    deviation = np.sqrt(np.square(values - mean).mean(axis=0, dtype=np.float64))
    return np.where(deviation > 0, deviation, 1).astype(np.float32)
