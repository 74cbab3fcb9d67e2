"""Split rows into folds and a holdout. Use `split_folds` and `split_holdout`.

The grouped split keeps all rows of a prompt together and balances classes and sizes. The stratified
split is the reference study's: it puts repeated prompts on both sides, and its log loss is 0.005 to
0.010 too good.
"""

from fractions import Fraction

import numpy as np

from kit.errors import DataError
from kit.task import CLASSES, TRAIN_FILE


def split_folds(labels: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row (N,) as int16, 0 to folds - 1, stratified by label.

    Args:
        labels: (N,) in 0, 1, 2.
        groups: (N,) numbers of prompt groups that stay together, or None for the stratified split.

    Raises:
        DataError: too few rows or groups for that many folds.
    """
    _check_counts(labels, groups, folds, f"{folds} folds")
    if groups is not None:
        return _split_groups(labels, groups, folds, seed)

    # The import takes a second, which grouped folds do without.
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), np.int16)
    for k, (_, rows) in enumerate(splitter.split(labels, labels)):
        fold[rows] = k
    return fold


def split_holdout(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray:
    """Return True for the rows (N,) of the holdout.

    A grouped holdout has the share of the nearest fraction p/q with q up to 20, or below 1/20 of
    the nearest 1/q, as far as the sizes of the groups allow: it is p out of q folds, those whose
    class counts are nearest to the average.

    Args:
        labels, groups: as for `split_folds`.
        share: of the rows, above 0 and up to 0.5.

    Raises:
        DataError: too few rows or groups.
    """
    _check_counts(labels, groups, 2, "a holdout")
    if groups is None:
        return _split_stratified_holdout(labels, share, seed)

    max_folds = min(len(np.unique(groups)), int(np.bincount(labels).max()))
    parts = Fraction()
    if share >= 1 / 20:
        parts = Fraction(share).limit_denominator(min(20, max_folds))
    if not parts:
        parts = Fraction(1, min(max_folds, round(1 / share)))

    # Another seed than that of the folds, so that the holdout is not a fold.
    folds = parts.denominator
    fold = _split_groups(labels, groups, folds, (seed + 1) % 2**32)
    counts = np.stack(
        [np.bincount(labels[fold == k], minlength=len(CLASSES)) for k in range(folds)]
    )
    average = np.bincount(labels, minlength=len(CLASSES)) / folds
    distance = np.abs(counts - average).sum(axis=1)
    return np.isin(fold, np.argsort(distance, kind="stable")[: parts.numerator])


def _split_stratified_holdout(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    from sklearn.model_selection import train_test_split

    size = int(np.ceil(share * len(labels)))
    if min(size, len(labels) - size) < len(np.unique(labels)):
        raise DataError(
            f"{TRAIN_FILE}: {len(labels)} rows are too few for a holdout of {share:g} with every "
            "class",
            "Use more rows, or another --valid.",
        )
    _, rows = train_test_split(
        np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
    )
    holdout = np.zeros(len(labels), bool)
    holdout[rows] = True
    return holdout


def _check_counts(labels: np.ndarray, groups: np.ndarray | None, folds: int, what: str) -> None:
    counts = np.bincount(labels, minlength=len(CLASSES))
    rows, name = min((int(c), name) for c, name in zip(counts, CLASSES, strict=True) if c)
    if rows < folds:
        raise DataError(
            f"{TRAIN_FILE}: only {rows} rows have {name}, too few for {what}",
            "Use more rows, or fewer folds (--folds).",
        )
    prompts = folds if groups is None else len(np.unique(groups))
    if prompts < folds:
        plural = "s" if prompts > 1 else ""
        raise DataError(
            f"{TRAIN_FILE}: only {prompts} distinct prompt{plural}, too few for {what} that share "
            "no prompt",
            "Use more rows, fewer folds (--folds), or --split stratified.",
        )


def _split_groups(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold (N,) of each row, with the rows of a group in one fold.

    The largest group goes first, each to the fold that then keeps the sum of the squared shares of
    the classes and of all rows smallest. Groups of one row, which are most of them, go last and all
    at once: they fill each fold up to its share. No fold stays empty: an empty one costs nothing,
    so it is chosen before any other.

    scikit-learn's StratifiedGroupKFold aims at the same balance, but is not used: it takes about
    40 µs for each group and fold, half a minute for the competition's 51,000 prompts, and it puts
    other rows into the folds than those that existing run directories refer to.
    """
    _, unit = np.unique(groups, return_inverse=True)
    width = len(CLASSES)
    mix = np.bincount(unit * width + labels, minlength=(unit.max() + 1) * width).reshape(-1, width)
    mix = np.column_stack([mix, mix.sum(axis=1)])  # (G, 4): rows of each class, and of all

    order = np.random.default_rng(seed).permutation(len(mix))
    order = order[np.argsort(-mix[order, width], kind="stable")]
    single = mix[order, width] == 1
    # Too few groups of one row could not fill every fold.
    if single.sum() < 10 * folds:
        single[:] = False

    fold = np.empty(len(mix), np.int16)
    weight = mix / np.maximum(mix.sum(axis=0), 1) ** 2.0
    have = np.zeros((folds, width + 1))
    for group in order[~single]:
        k = (have @ weight[group]).argmin()
        fold[group] = k
        have[k] += mix[group]

    for label in range(width):
        units = order[single & (mix[order, label] == 1)]
        lack = np.maximum(mix[:, label].sum() / folds - have[:, label], 0)
        ends = np.rint(lack.cumsum() / max(lack.sum(), 1) * len(units))
        fold[units] = np.searchsorted(ends, np.arange(len(units)), side="right")
    return fold[unit]
