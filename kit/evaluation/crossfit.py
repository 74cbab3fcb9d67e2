"""Cross-fitting: what something fitted to predictions is worth on rows it was not fitted to, prompts kept whole."""

from collections.abc import Callable

import numpy as np

from kit.task import CLASSES

FOLDS = 5


def crossfit_folds(groups: np.ndarray, number: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold of each row (N,), 0 to number-1: groups are whole, and dealt out like cards, the largest first.

    Which rows come together depends on the groups and the seed, not on the order of the rows.

    Args:
        groups: (N,) what row belongs to which group; the ids where rows are independent.
        number: of folds.
        seed: of the deal.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    deal = np.arange(len(sizes)) % (2 * number)
    fold = np.empty(len(sizes), np.int64)
    fold[order] = np.minimum(
        deal, 2 * number - 1 - deal
    )  # back and forth, so that no fold is always first
    return fold[member]


def cross_fit(fold: np.ndarray, fit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Probabilities (N, 3) of each row by a fit to the other folds.

    Args:
        fold: (N,) as `folds` gives.
        fit: takes the numbers of the rows to fit to (T,) and of those to predict (V,), and returns (V, 3).
    """
    probabilities = np.empty((len(fold), len(CLASSES)))
    for each in np.unique(fold):
        rows = np.flatnonzero(fold == each)
        probabilities[rows] = fit(np.flatnonzero(fold != each), rows)
    return probabilities
