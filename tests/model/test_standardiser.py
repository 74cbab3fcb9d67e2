"""Features on one scale: by the rows to train on alone, the same for swapped rows, and no outlier beyond five."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular_rows import exchanged, tabular_rows
from torch import Tensor

from kit.data.feature_cache import FeatureTable
from kit.model.heads import OUTLIER, Standardiser

TABLE = tabular_rows(60)
SIDES, PAIR = TABLE.sides.shape[2], TABLE.pair.shape[1]
TRAIN = np.arange(0, 60, 2)


def fitted(tabular: FeatureTable, rows: np.ndarray = TRAIN) -> Standardiser:
    scales = Standardiser(SIDES, PAIR)
    scales.fit_rows(tabular, rows)
    return scales


def read(scales: Standardiser, tabular: FeatureTable) -> Tensor:
    return scales(torch.from_numpy(tabular.sides), torch.from_numpy(tabular.pair))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(-1e6, 1e6, width=32))
def test_other_rows_change_nothing(seed: int, value: float):
    """Whatever stands in the rows that are not trained on."""
    other = tabular_rows(60, seed)
    other.sides[1::2, 0], other.pair[1::2, 1] = value, value
    other.sides[TRAIN], other.pair[TRAIN] = TABLE.sides[TRAIN], TABLE.pair[TRAIN]
    expected = fitted(TABLE).state_dict()
    for name, each in fitted(other).state_dict().items():
        assert torch.equal(each, expected[name]), name


def test_the_rows_fitted_have_mean_0_and_deviation_1():
    found = read(fitted(TABLE), TABLE)[TRAIN].double()
    inside = (found.abs() < OUTLIER).all(0)
    a, b, difference, distance, pair = found.split([SIDES, SIDES, SIDES, SIDES, PAIR], 1)
    for each, part in (
        (torch.cat([a, b]), inside[:SIDES] & inside[SIDES : 2 * SIDES]),
        (distance, inside[3 * SIDES : 4 * SIDES]),
    ):
        constant = each.std(0) == 0
        torch.testing.assert_close(
            each.mean(0)[part], torch.zeros(int(part.sum())).double(), atol=1e-4, rtol=0
        )
        deviations = each.std(0, correction=0)[part & ~constant]
        torch.testing.assert_close(deviations, torch.ones_like(deviations), atol=1e-4, rtol=0)
    squares = difference.square().mean(0)[inside[2 * SIDES : 3 * SIDES]]
    assert ((squares - 1).abs() < 1e-4).sum() == len(squares) - 1  # but for the constant one
    assert abs(pair.mean().item()) < 0.05


def test_a_swap_trades_the_places_and_the_sign_to_the_bit():
    a, b, difference, distance, pair = read(fitted(TABLE), TABLE).split(
        [SIDES, SIDES, SIDES, SIDES, PAIR], 1
    )
    found = read(fitted(exchanged(TABLE)), exchanged(TABLE))
    assert torch.allclose(
        found, torch.cat([b, a, -difference, distance, pair], 1), atol=1e-6
    )  # fitted on them swapped
    assert torch.equal(
        read(fitted(TABLE), exchanged(TABLE)), torch.cat([b, a, -difference, distance, pair], 1)
    )


def test_an_outlier_is_cut_off_and_a_constant_does_no_harm():
    scales, far = fitted(TABLE), tabular_rows(4)
    far.sides[:] = 1e30
    far.pair[:] = -1e30
    found = read(scales, far)
    assert found.abs().max() == OUTLIER
    assert torch.isfinite(found).all()
    constant = read(scales, TABLE)[:, 3]
    assert constant.abs().max() < 1e-3


def test_nothing_in_it_is_trained():
    scales = Standardiser(SIDES, PAIR)
    assert not list(scales.parameters())
    assert scales.width == 4 * SIDES + PAIR
    assert read(scales, TABLE).shape == (60, scales.width)
