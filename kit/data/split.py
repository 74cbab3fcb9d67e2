"""Holdout and folds: all rows of a prompt on one side, classes and sizes balanced; or the reference's plain split.

A random split puts repeated prompts on both sides and reads 0.005-0.010 of log loss better than the truth.
"""

from fractions import Fraction

import numpy as np

from kit.errors import DataError
from kit.task import CLASSES, TRAIN_FILE

SPLITS = ("grouped", "stratified")


def split_folds(
    labels: np.ndarray, groups: np.ndarray | None, number: int, seed: int
) -> np.ndarray:
    """The fold of each row (N,) as int16, 0 to number-1, stratified by label.

    Args:
        labels: (N,) in 0, 1, 2.
        groups: (N,) numbers of prompt groups that stay together, or None for the reference's split.
    Raises:
        DataError: too few rows or groups for that many folds.
    """
    _enough(labels, groups, number, f"{number} folds")
    if groups is None:
        from sklearn.model_selection import (
            StratifiedKFold,
        )  # a second of imports that grouped folds do without

        fold = np.empty(len(labels), np.int16)
        for k, (_, rows) in enumerate(
            StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels)
        ):
            fold[rows] = k
        return fold
    return _together(labels, groups, number, seed)


def split_holdout(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray:
    """True for the rows (N,) of the validation share.

    Grouped, the share is that of the nearest fraction p/q with q up to 20, or below 1/20 of the nearest 1/q, as far as
    the sizes of the groups allow: p of q folds, those that come nearest to the class counts wanted.

    Raises:
        DataError: too few rows or groups.
    """
    if groups is None:
        from sklearn.model_selection import train_test_split

        _enough(labels, None, 2, "a holdout")
        wanted, classes = int(np.ceil(share * len(labels))), len(np.unique(labels))
        if min(wanted, len(labels) - wanted) < classes:
            raise DataError(
                f"{TRAIN_FILE}: {len(labels)} rows are too few to hold out {share:g} of them with every class",
                "Use more rows, or another --valid.",
            )
        held = np.zeros(len(labels), bool)
        _, rows = train_test_split(
            np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
        )
        held[rows] = True
        return held
    _enough(labels, groups, 2, "a holdout")
    most = min(len(np.unique(groups)), int(np.bincount(labels).max()))
    parts = Fraction(share).limit_denominator(min(20, most)) if share >= 1 / 20 else Fraction()
    parts = parts or Fraction(1, min(most, round(1 / share)))
    fold = _together(
        labels, groups, parts.denominator, (seed + 1) % 2**32
    )  # another cut than the folds'
    classes = np.bincount(labels, minlength=len(CLASSES))
    counts = np.stack(
        [np.bincount(labels[fold == k], minlength=len(CLASSES)) for k in range(parts.denominator)]
    )
    far = np.abs(counts - classes / parts.denominator).sum(axis=1)
    return np.isin(fold, np.argsort(far, kind="stable")[: parts.numerator])


def _enough(labels: np.ndarray, groups: np.ndarray | None, number: int, what: str) -> None:
    counts = np.bincount(labels, minlength=len(CLASSES))
    rarest = min((int(c), name) for c, name in zip(counts, CLASSES, strict=True) if c)
    if rarest[0] < number:
        raise DataError(
            f"{TRAIN_FILE}: only {rarest[0]} rows have {rarest[1]}, too few for {what}",
            "Use more rows, or fewer folds (--folds).",
        )
    prompts = number if groups is None else len(np.unique(groups))
    if prompts < number:
        raise DataError(
            f"{TRAIN_FILE}: only {prompts} distinct prompt{'s' * (prompts > 1)}, too few for {what} that share none",
            "Use more rows, fewer folds (--folds), or --split stratified.",
        )


def _together(labels: np.ndarray, groups: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row, groups kept whole.

    Largest group first, each to the fold that then keeps the squared shares of the classes, and of all rows, least:
    what StratifiedGroupKFold aims at, which deals groups at about 40 µs for each group and fold, half a minute for
    51,000 prompts. Groups of one row, most of them, come last and at once: they fill each fold up to its share.
    No fold stays empty: an empty one costs nothing, and is chosen before any other.
    """
    _, unit = np.unique(groups, return_inverse=True)
    width = len(CLASSES)
    mix = np.bincount(unit * width + labels, minlength=(unit.max() + 1) * width).reshape(-1, width)
    mix = np.column_stack([mix, mix.sum(axis=1)])  # (G, 4): rows of each class, and of all
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(mix))
    order = order[np.argsort(-mix[order, width], kind="stable")]
    alone = mix[order, width] == 1
    if alone.sum() < 10 * number:
        alone[:] = False  # too few to fill every fold
    weight = mix / np.maximum(mix.sum(axis=0), 1) ** 2.0
    have = np.zeros((number, width + 1))
    fold = np.empty(len(mix), np.int16)
    for one in order[~alone]:
        fold[one] = k = (have @ weight[one]).argmin()
        have[k] += mix[one]
    for label in range(width):
        units = order[alone & (mix[order, label] == 1)]
        lack = np.maximum(mix[:, label].sum() / number - have[:, label], 0)
        ends = np.rint(lack.cumsum() / max(lack.sum(), 1) * len(units))
        fold[units] = np.searchsorted(ends, np.arange(len(units)), side="right")
    return fold[unit]
