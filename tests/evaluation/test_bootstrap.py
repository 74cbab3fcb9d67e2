"""Intervals cover what they should: whole groups are resampled, pairs stay pairs, few groups say nothing."""

import numpy as np
import pytest

from kit.evaluation.bootstrap import (
    bootstrap_means,
    loss_difference,
    loss_differences,
    loss_interval,
    loss_intervals,
)


def grouped(groups=400, size=1, seed=0):
    """Values that are equal within a group, so that only the number of groups informs."""
    values = np.random.default_rng(seed).normal(1.0, 0.5, groups)
    return np.repeat(values, size), np.repeat(np.arange(groups), size)


def test_for_independent_rows_it_is_the_normal_interval():
    values, groups = grouped(2000)
    low, high = loss_interval(values, groups, draws=2000)
    error = values.std() / np.sqrt(len(values))
    assert [low, high] == pytest.approx(
        [values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.2 * error
    )


def test_rows_of_one_group_count_once():
    once = loss_interval(*grouped(size=1))
    assert loss_interval(*grouped(size=9)) == pytest.approx(once)
    values, _ = grouped(size=9)
    low, high = loss_interval(values, np.arange(len(values)))
    assert (high - low) * 2.5 < once[1] - once[0]


def test_it_is_what_a_plain_loop_over_resampled_groups_gives():
    generator = np.random.default_rng(5)
    groups = generator.integers(0, 60, 300)
    values = generator.gamma(2, 0.5, 300) + groups / 60
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([rows[i] for i in generator.integers(0, len(rows), len(rows))])
        means.append(values[drawn].mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert loss_interval(values, groups, draws=4000) == pytest.approx(tuple(expected), abs=0.02)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values, groups = grouped(60, 2, seed)
        low, high = loss_interval(values, groups, draws=200, seed=seed, level=0.8)
        covered += low <= 1.0 <= high
    assert 0.68 < covered / 200 < 0.9


def test_the_same_seed_repeats_and_another_does_not():
    values, groups = grouped()
    once = loss_interval(values, groups)
    assert loss_interval(values, groups) == once
    assert loss_interval(values, groups, seed=1) != once


def test_neither_the_order_of_rows_nor_the_names_of_groups_matter():
    values, groups = grouped(size=3)
    order = np.random.default_rng(1).permutation(len(values))
    assert loss_interval(values[order], groups[order] * 10 + 7) == pytest.approx(
        loss_interval(values, groups)
    )


def test_a_wider_level_is_a_wider_interval():
    values, groups = grouped()
    narrow, wide = (
        loss_interval(values, groups, level=0.5),
        loss_interval(values, groups, level=0.99),
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "groups"), [([], []), ([1.0, 2.0], [1]), ([1.0, np.nan], [1, 2]), ([[1.0]], [[1]])]
)
def test_values_that_have_no_interval_are_refused(values, groups):
    with pytest.raises(ValueError, match="value"):
        loss_interval(np.array(values), np.array(groups))


def test_a_small_but_steady_gain_is_seen_because_rows_are_paired():
    values, groups = grouped(size=2)
    noise = np.random.default_rng(3).normal(0, 0.01, len(values))
    found = loss_difference(values - 0.01 + noise, values, groups)
    assert found.verdict == "better"
    assert found.low < found.mean < found.high < 0
    assert loss_difference(values, values - 0.01 + noise, groups).verdict == "worse"


def test_swapping_the_two_turns_the_difference_round():
    (x, groups), (y, _) = grouped(seed=1), grouped(seed=2)
    mean, low, high, verdict = loss_difference(x, y, groups)
    back = loss_difference(y, x, groups)
    assert verdict == back.verdict == "can't tell"
    assert (back.mean, back.low, back.high) == pytest.approx((-mean, -high, -low))


def test_equal_losses_cannot_be_told_apart():
    values, groups = grouped()
    assert loss_difference(values, values, groups) == (0, 0, 0, "can't tell")


@pytest.mark.parametrize(
    ("groups", "verdict"), [(1, "can't tell"), (5, "can't tell"), (6, "better")]
)
def test_a_handful_of_groups_proves_nothing(groups, verdict):
    values, names = grouped(groups, size=50)
    assert loss_difference(values - 0.5, values, names).verdict == verdict


def test_several_losses_see_the_same_draws():
    generator = np.random.default_rng(2)
    groups = generator.integers(0, 80, 300)
    losses = generator.gamma(2, 0.5, (3, 300))
    drawn = bootstrap_means(losses, groups, draws=50)
    assert drawn.shape == (3, 50)
    np.testing.assert_allclose(
        drawn[0] - drawn[2], bootstrap_means((losses[0] - losses[2])[None], groups, draws=50)[0]
    )
    assert loss_intervals(losses, groups)[1] == pytest.approx(loss_interval(losses[1], groups))
    pair, alone = (
        loss_differences(losses, groups)[0][2],
        loss_difference(losses[0], losses[2], groups),
    )
    assert pair[:3] == pytest.approx(alone[:3])
    assert pair.verdict == alone.verdict
    assert loss_differences(losses, groups)[2][0].mean == pytest.approx(-pair.mean)


@pytest.mark.parametrize("groups", [7, 61, 1003])
def test_equal_losses_have_equal_intervals_wherever_they_stand(groups: int):
    losses = np.random.default_rng(groups).gamma(2, 0.5, (1, groups)).repeat(6, axis=0)
    assert len(set(loss_intervals(losses, np.arange(groups)))) == 1
    assert {each for row in loss_differences(losses, np.arange(groups)) for each in row} == {
        (0.0, 0.0, 0.0, "can't tell")
    }
