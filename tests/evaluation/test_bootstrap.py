"""Check that bootstrap intervals resample whole groups, keep pairs, and need enough groups."""

import numpy as np
import pytest

from kit.evaluation.bootstrap import (
    bootstrap_means,
    loss_difference,
    loss_differences,
    loss_interval,
    loss_intervals,
)


def make_grouped_values(
    groups: int = 400, size: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return values that are equal within a group, so that only the number of groups informs."""
    values = np.random.default_rng(seed).normal(1.0, 0.5, groups)
    return np.repeat(values, size), np.repeat(np.arange(groups), size)


def test_independent_rows_have_the_normal_interval():
    values, groups = make_grouped_values(2000)
    low, high = loss_interval(values, groups, draws=2000)

    error = values.std() / np.sqrt(len(values))
    expected = [values.mean() - 1.96 * error, values.mean() + 1.96 * error]
    assert [low, high] == pytest.approx(expected, abs=0.2 * error)


def test_rows_of_one_group_count_once():
    single = loss_interval(*make_grouped_values(size=1))
    assert loss_interval(*make_grouped_values(size=9)) == pytest.approx(single)

    values, _ = make_grouped_values(size=9)
    low, high = loss_interval(values, np.arange(len(values)))
    assert (high - low) * 2.5 < single[1] - single[0]


def test_interval_equals_that_of_a_plain_loop_over_resampled_groups():
    generator = np.random.default_rng(5)
    groups = generator.integers(0, 60, 300)
    values = generator.gamma(2, 0.5, 300) + groups / 60

    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([rows[i] for i in generator.integers(0, len(rows), len(rows))])
        means.append(values[drawn].mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert loss_interval(values, groups, draws=4000) == pytest.approx(tuple(expected), abs=0.02)


def test_interval_covers_the_mean_about_as_often_as_its_level():
    covered = 0
    for seed in range(200):
        values, groups = make_grouped_values(60, 2, seed)
        low, high = loss_interval(values, groups, draws=200, seed=seed, level=0.8)
        covered += low <= 1.0 <= high
    assert 0.68 < covered / 200 < 0.9


def test_same_seed_repeats_and_another_does_not():
    values, groups = make_grouped_values()
    first = loss_interval(values, groups)
    assert loss_interval(values, groups) == first
    assert loss_interval(values, groups, seed=1) != first


def test_order_of_rows_and_names_of_groups_do_not_matter():
    values, groups = make_grouped_values(size=3)
    order = np.random.default_rng(1).permutation(len(values))
    shuffled = loss_interval(values[order], groups[order] * 10 + 7)
    assert shuffled == pytest.approx(loss_interval(values, groups))


def test_higher_level_gives_a_wider_interval():
    values, groups = make_grouped_values()
    narrow = loss_interval(values, groups, level=0.5)
    wide = loss_interval(values, groups, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "groups"), [([], []), ([1.0, 2.0], [1]), ([1.0, np.nan], [1, 2]), ([[1.0]], [[1]])]
)
def test_values_without_an_interval_are_refused(values, groups):
    with pytest.raises(ValueError, match="value"):
        loss_interval(np.array(values), np.array(groups))


def test_small_steady_gain_is_detected_because_rows_are_paired():
    values, groups = make_grouped_values(size=2)
    noise = np.random.default_rng(3).normal(0, 0.01, len(values))
    improved = values - 0.01 + noise

    difference = loss_difference(improved, values, groups)
    assert difference.verdict == "better"
    assert difference.low < difference.mean < difference.high < 0
    assert loss_difference(values, improved, groups).verdict == "worse"


def test_swapping_the_models_negates_the_difference():
    x, groups = make_grouped_values(seed=1)
    y, _ = make_grouped_values(seed=2)
    mean, low, high, verdict = loss_difference(x, y, groups)
    swapped = loss_difference(y, x, groups)
    assert verdict == swapped.verdict == "can't tell"
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-mean, -high, -low))


def test_equal_losses_give_no_verdict():
    values, groups = make_grouped_values()
    assert loss_difference(values, values, groups) == (0, 0, 0, "can't tell")


@pytest.mark.parametrize(
    ("groups", "verdict"), [(1, "can't tell"), (5, "can't tell"), (6, "better")]
)
def test_fewer_than_six_groups_give_no_verdict(groups, verdict):
    values, names = make_grouped_values(groups, size=50)
    assert loss_difference(values - 0.5, values, names).verdict == verdict


def test_all_models_share_the_same_draws():
    generator = np.random.default_rng(2)
    groups = generator.integers(0, 80, 300)
    losses = generator.gamma(2, 0.5, (3, 300))

    means = bootstrap_means(losses, groups, draws=50)
    assert means.shape == (3, 50)
    of_difference = bootstrap_means((losses[0] - losses[2])[None], groups, draws=50)[0]
    np.testing.assert_allclose(means[0] - means[2], of_difference)
    assert loss_intervals(losses, groups)[1] == pytest.approx(loss_interval(losses[1], groups))

    pair = loss_differences(losses, groups)[0][2]
    alone = loss_difference(losses[0], losses[2], groups)
    assert pair[:3] == pytest.approx(alone[:3])
    assert pair.verdict == alone.verdict
    assert loss_differences(losses, groups)[2][0].mean == pytest.approx(-pair.mean)


@pytest.mark.parametrize("groups", [7, 61, 1003])
def test_equal_losses_have_bit_identical_intervals(groups: int):
    losses = np.random.default_rng(groups).gamma(2, 0.5, (1, groups)).repeat(6, axis=0)
    assert len(set(loss_intervals(losses, np.arange(groups)))) == 1

    differences = loss_differences(losses, np.arange(groups))
    assert {pair for row in differences for pair in row} == {(0.0, 0.0, 0.0, "can't tell")}
