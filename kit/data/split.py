"""Split rows into folds and a holdout. Use `split_folds` and `split_holdout`.

The grouped split keeps all rows of a prompt together and balances classes and sizes. The stratified
split is that of the reference study. It puts rows of one prompt on both sides of a split, which
makes the validation log loss look 0.005 to 0.010 better than it is.
"""

from fractions import Fraction

import numpy as np

from kit.errors import DataError
from kit.task import CLASSES, TRAIN_FILE
from kit.wording import counted


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

    # The import takes a second, and grouped folds do not need it.
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), np.int16)
    for k, (_, rows) in enumerate(splitter.split(labels, labels)):
        fold[rows] = k
    return fold


def split_holdout(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray:
    """Return a mask (N,), True for the rows of the holdout.

    A grouped holdout is p out of q folds, those whose class counts are nearest to the average. p/q
    is the fraction nearest to `share` with q up to 20; for a share below 1/20 it is the nearest
    1/q. Few or large groups can make the holdout larger or smaller than that.

    Args:
        labels, groups: as for `split_folds`.
        share: the holdout's share of the rows, above 0 and up to 0.5.

    Raises:
        DataError: too few rows or groups.
    """
    _check_counts(labels, groups, 2, "a holdout")
    if groups is None:
        return _split_stratified_holdout(labels, share, seed)

    max_folds = min(len(np.unique(groups)), int(np.bincount(labels).max()))
    fraction = Fraction()
    if share >= 1 / 20:
        fraction = Fraction(share).limit_denominator(min(20, max_folds))
    # With few folds the nearest fraction can be 0, but a holdout must have rows.
    if not fraction:
        fraction = Fraction(1, min(max_folds, round(1 / share)))

    # The seed differs from that of the folds, so that the holdout is not one of them.
    folds = fraction.denominator
    fold = _split_groups(labels, groups, folds, (seed + 1) % 2**32)
    counts = np.stack(
        [np.bincount(labels[fold == k], minlength=len(CLASSES)) for k in range(folds)]
    )
    average = np.bincount(labels, minlength=len(CLASSES)) / folds
    distance = np.abs(counts - average).sum(axis=1)
    return np.isin(fold, np.argsort(distance, kind="stable")[: fraction.numerator])


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
    """Raise DataError if the rarest class has fewer rows, or the rows fewer groups, than folds."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    by_class = zip(counts.tolist(), CLASSES, strict=True)
    rows, name = min((count, name) for count, name in by_class if count)
    if rows < folds:
        raise DataError(
            f"{TRAIN_FILE}: {name} is in {counted(rows, 'row')} only, too few for {what}",
            "Use more rows, or fewer folds (--folds).",
        )
    if groups is None:
        return

    prompts = len(np.unique(groups))
    if prompts < folds:
        plural = "s" if prompts > 1 else ""
        raise DataError(
            f"{TRAIN_FILE}: only {prompts} distinct prompt{plural}, too few for {what} that share "
            "no prompt",
            "Use more rows, fewer folds (--folds), or --split stratified.",
        )


def _split_groups(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold (N,) of each row, with the rows of a group in one fold.

    Groups are dealt from the largest to the smallest. Each goes to the fold where it raises the sum
    of the squared shares (of each class, and of all rows) least. An empty fold is therefore chosen
    before any other, and none stays empty. Groups of one row, which are most of them, come last and
    are dealt class by class: they fill each fold up to its share.

    scikit-learn's StratifiedGroupKFold aims at the same balance, but is not used: it takes about
    40 µs for each group and fold, half a minute for the competition's 51,000 prompts, and it puts
    other rows into the folds than those that existing run directories refer to.
    """
    classes = len(CLASSES)
    total = classes  # the last column of the counts: rows of all classes

    _, group_of_row = np.unique(groups, return_inverse=True)
    group_count = group_of_row.max() + 1
    cells = np.bincount(group_of_row * classes + labels, minlength=group_count * classes)
    by_class = cells.reshape(-1, classes)
    counts = np.column_stack([by_class, by_class.sum(axis=1)])  # (G, 4)

    order = np.random.default_rng(seed).permutation(group_count)
    order = order[np.argsort(-counts[order, total], kind="stable")]
    is_single = counts[order, total] == 1
    # Too few groups of one row could not fill every fold, so they are dealt like the others.
    if is_single.sum() < 10 * folds:
        is_single[:] = False

    fold_of_group = np.empty(group_count, np.int16)
    weights = counts / np.maximum(counts.sum(axis=0), 1) ** 2.0
    filled = np.zeros((folds, classes + 1))
    for group in order[~is_single]:
        k = (filled @ weights[group]).argmin()
        fold_of_group[group] = k
        filled[k] += counts[group]

    for label in range(classes):
        singles = order[is_single & (counts[order, label] == 1)]
        missing = np.maximum(counts[:, label].sum() / folds - filled[:, label], 0)
        ends = np.rint(missing.cumsum() / max(missing.sum(), 1) * len(singles))
        fold_of_group[singles] = np.searchsorted(ends, np.arange(len(singles)), side="right")
    return fold_of_group[group_of_row]
