"""Check that cross-fitting keeps groups whole and never predicts a row it was fitted to."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.evaluation.crossfit import cross_fit_predict, crossfit_folds


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(2, 6), st.integers(0, 50))
def test_folds_keep_groups_whole_in_any_order_of_rows(group_ids, number, seed):
    groups = np.array(group_ids)
    folds = crossfit_folds(groups, number, seed)
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    assert set(folds) <= set(range(number))

    order = np.random.default_rng(seed).permutation(len(groups))
    assert (crossfit_folds(groups[order], number, seed) == folds[order]).all()


def test_folds_are_of_even_size():
    sizes = np.bincount(crossfit_folds(np.arange(57_477) // 3, 5))
    assert sizes.max() - sizes.min() <= 6


def test_rows_are_predicted_by_fits_to_other_folds_only():
    folds = crossfit_folds(np.arange(40) // 2, 4)

    def check_rows(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        assert not set(folds[train]) & set(folds[test])
        assert len(train) + len(test) == 40
        return np.repeat(test[:, None], 3, axis=1)

    assert (cross_fit_predict(folds, check_rows)[:, 0] == np.arange(40)).all()
