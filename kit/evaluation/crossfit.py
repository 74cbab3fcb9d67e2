"""Cross-fit small models of predictions, in folds that keep prompts whole.

Use `crossfit_folds` and `cross_fit_predict`; `too_few_rows` says when a fit is not worth trying.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kit.task import CLASSES
from kit.wording import counted

FOLDS = 5

# With fewer rows or groups than this, a fit follows the noise.
ROWS_PER_PARAMETER = 100
MIN_GROUPS = 20


@dataclass(frozen=True)
class FitTrial:
    """A method that was tried: its log loss on the rows it was fitted to, and cross-fitted."""

    method: str
    in_sample: float
    cross_fitted: float


def crossfit_folds(groups: np.ndarray, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Return the fold of each row (N,), 0 to folds - 1, never splitting a group.

    Folds are of even size. They depend on the groups and the seed, not on the order of the rows.

    Args:
        groups: (N,) group of each row; the ids where rows are independent.
        folds: number of folds.
        seed: of the shuffle that breaks ties between groups of one size.
    """
    # Not `sklearn.model_selection.GroupKFold`: with shuffle=True (since 1.6, newer than what
    # pyproject.toml asks for) it balances groups instead of rows, so its folds would differ, and
    # with them every documented cross-fitted loss. It also takes a second to import.
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    largest_first = shuffled[np.argsort(-sizes[shuffled], kind="stable")]

    # Serpentine order (0 1 2 2 1 0 …), so that no fold always receives the larger group of a round.
    position = np.arange(len(sizes)) % (2 * folds)
    fold_of_group = np.empty(len(sizes), np.int64)
    fold_of_group[largest_first] = np.minimum(position, 2 * folds - 1 - position)
    return fold_of_group[group]


def cross_fit_predict(
    folds: np.ndarray, fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return probabilities (N, 3), each row predicted by a fit to the other folds.

    Args:
        folds: (N,) as `crossfit_folds` returns them.
        fit_predict: takes the indices of the rows to fit to (T,) and to predict (V,), and returns
            (V, 3).
    """
    probabilities = np.empty((len(folds), len(CLASSES)))
    for fold in np.unique(folds):
        test_rows = np.flatnonzero(folds == fold)
        probabilities[test_rows] = fit_predict(np.flatnonzero(folds != fold), test_rows)
    return probabilities


def too_few_rows(labels: np.ndarray, groups: np.ndarray, parameters: int) -> str:
    """Return why these rows cannot support a fit of `parameters` parameters, or "" if they can."""
    required = ROWS_PER_PARAMETER * parameters
    if len(labels) < required:
        wanted = counted(parameters, "parameter")
        return f"{len(labels)} rows are too few to fit {wanted}: it takes {required}"

    prompts = len(np.unique(groups))
    if prompts < MIN_GROUPS:
        return f"{prompts} distinct prompts are too few to fit anything: it takes {MIN_GROUPS}"
    if len(np.unique(labels)) < len(CLASSES):
        return "not every class is among the labels"
    return ""
