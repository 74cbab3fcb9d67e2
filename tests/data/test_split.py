"""Check that splits keep prompts whole and balance classes and sizes, for any sizes of groups."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from kit.data.split import split_folds, split_holdout
from kit.errors import DataError


def rows(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups in random order, one group of each size."""
    generator = np.random.default_rng(seed)
    groups = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return generator.choice(3, len(groups), p=[0.35, 0.34, 0.31]), groups


def crosses(part: np.ndarray, groups: np.ndarray) -> bool:
    return len({*zip(groups.tolist(), part.tolist(), strict=True)}) > len(np.unique(groups))


def imbalance(fold: np.ndarray, labels: np.ndarray, number: int) -> float:
    """Return the largest deviation of a class from an equal share, in rows."""
    counts = np.stack([np.bincount(labels[fold == k], minlength=3) for k in range(number)])
    return np.abs(counts - counts.mean(axis=0)).max()


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(0, 500),
    st.integers(2, 8),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=150)
def test_folds_and_holdout_keep_prompts_whole_and_are_not_empty(
    sizes: list[int], singles: int, number: int, seed: int
) -> None:
    labels, groups = rows(sizes + [1] * singles, seed)
    assume(len(sizes) + singles >= number and np.bincount(labels, minlength=3).min() >= number)
    fold = split_folds(labels, groups, number, seed)
    assert not crosses(fold, groups)
    assert set(fold) == set(range(number))

    holdout = split_holdout(labels, groups, 0.1, seed)
    assert not crosses(holdout, groups)
    assert 0 < holdout.sum() < len(holdout)


@pytest.mark.parametrize("groups", [True, False], ids=["grouped", "stratified"])
def test_the_seed_decides_the_split(groups: bool) -> None:
    labels, numbers = rows([1] * 200 + [3] * 30)
    by = numbers if groups else None
    for split in (
        lambda seed: split_folds(labels, by, 5, seed),
        lambda seed: split_holdout(labels, by, 0.1, seed),
    ):
        assert np.array_equal(split(7), split(7))
        assert not np.array_equal(split(7), split(8))


def test_folds_are_balanced_on_prompts_repeated_as_in_the_competition() -> None:
    generator = np.random.default_rng(1)
    labels, groups = rows([1] * 4000 + (1 + generator.geometric(0.4, 300)).tolist() + [60, 25])
    assert imbalance(split_folds(labels, groups, 5, 0), labels, 5) <= 2

    holdout = split_holdout(labels, groups, 0.1, 0)
    shares = np.bincount(labels[holdout]) / np.bincount(labels)
    assert np.abs(shares - 0.1).max() < 0.005


@pytest.mark.parametrize("sizes", [[1] * 50 + [2] * 200 + [9] * 40, [5] * 120, list(range(1, 60))])
def test_folds_are_about_as_balanced_as_those_of_stratified_group_k_fold(sizes: list[int]) -> None:
    labels, groups = rows(sizes)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    sklearn_fold = np.empty(len(labels), int)
    for k, (_, chosen) in enumerate(splitter.split(labels, labels, groups)):
        sklearn_fold[chosen] = k

    fold = split_folds(labels, groups, 5, 0)
    assert imbalance(fold, labels, 5) <= imbalance(sklearn_fold, labels, 5) + 3


@pytest.mark.parametrize("seed", range(5))
def test_thirteen_prompts_are_enough(seed: int) -> None:
    labels, groups = rows([170, 165, 165, 164, 164, 164, 164, 164, 164, 164, 164, 164, 163], seed)
    fold = split_folds(labels, groups, 5, seed)
    assert np.bincount(fold).min() >= 2 * 163
    assert np.bincount(fold).max() <= 3 * 170

    holdout = split_holdout(labels, groups, 0.1, seed)
    assert holdout.sum() <= 170
    assert set(labels[holdout]) == {0, 1, 2}


@pytest.mark.parametrize("share", [0.01, 0.025, 0.03, 0.04, 0.05, 0.1, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_holdout_has_the_share_asked_for(share: float, grouped: bool) -> None:
    labels, groups = rows([1] * 3000 + [2] * 500)
    holdout = split_holdout(labels, groups if grouped else None, share, 0)
    assert holdout.mean() == pytest.approx(share, abs=0.002)


def test_the_stratified_holdout_is_the_references() -> None:
    labels, _ = rows([1] * 500)
    _, chosen = train_test_split(np.arange(500), test_size=0.1, stratify=labels, random_state=42)
    assert np.flatnonzero(split_holdout(labels, None, 0.1, 42)).tolist() == sorted(chosen)


def test_stratified_folds_have_equal_classes() -> None:
    labels, _ = rows([1] * 501)
    assert imbalance(split_folds(labels, None, 5, 0), labels, 5) <= 1


def test_the_holdout_is_not_a_fold() -> None:
    labels, groups = rows([1] * 1000)
    fold = split_folds(labels, groups, 10, 0)
    holdout = split_holdout(labels, groups, 0.1, 0)
    assert (np.bincount(fold[holdout], minlength=10) > 0).all()


def test_too_few_prompts_are_an_error_that_names_the_options() -> None:
    labels, groups = rows([30, 30, 30])
    with pytest.raises(
        DataError,
        match=r"only 3 distinct prompts, too few for 5 folds[^\n]*\n.*--folds.*stratified",
    ):
        split_folds(labels, groups, 5, 0)
    with pytest.raises(DataError, match="only 1 distinct prompt, too few for a holdout"):
        split_holdout(labels, np.zeros(90, int), 0.1, 0)


@pytest.mark.parametrize("grouped", [True, False])
def test_too_few_rows_of_a_class_are_an_error_that_names_the_class(grouped: bool) -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2] * 4)
    groups = np.arange(44) if grouped else None
    with pytest.raises(DataError, match=r"winner_tie is in 4 rows only, too few for 5 folds"):
        split_folds(labels, groups, 5, 0)
    assert set(split_folds(labels, groups, 4, 0)) == {0, 1, 2, 3}


def test_a_holdout_without_room_for_every_class_is_an_error() -> None:
    with pytest.raises(DataError, match=r"9 rows are too few for a holdout of 0\.1"):
        split_holdout(np.array([0, 1, 2] * 3), None, 0.1, 0)
