"""Put bootstrap intervals around mean losses and paired differences, by whole prompt groups.

Use `loss_interval` for one model and `loss_difference` (paired) for two; the plural forms share one
set of draws.

Rows of one prompt are correlated, so the groups are the sampling unit: the cluster bootstrap of
Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007, with percentile intervals.
"""

from typing import Literal, NamedTuple

import numpy as np


class LossDifference(NamedTuple):
    """The paired difference of two mean losses, x minus y, its interval, and the verdict on x."""

    mean: float
    low: float
    high: float
    verdict: Literal["better", "worse", "can't tell"]


def loss_interval(
    row_values: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval (low, high) of the mean of `row_values` (N,).

    Args:
        row_values, groups, draws, seed: as for `bootstrap_means`, of one model.
        level: coverage of the interval.

    Raises:
        ValueError: no rows, lengths that differ, or values that are not finite.
    """
    return loss_intervals(np.asarray(row_values, np.float64)[None], groups, draws, seed, level)[0]


def loss_intervals(
    row_values: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[float, float]]:
    """Return `loss_interval` of each of M models on the same rows, (M, N), with shared draws."""
    means = bootstrap_means(row_values, groups, draws, seed)
    return [_percentile_interval(model_means, level) for model_means in means]


def bootstrap_means(
    row_values: np.ndarray, groups: np.ndarray, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return the means of M values of each row over resampled groups, (M, draws).

    All M values share the draws. Each draw takes as many groups as there are, with replacement; its
    mean is the sum of the groups' values over the sum of their sizes. The same seed draws the same
    groups in any order of the rows.

    Args:
        row_values: (M, N) finite values, such as `metrics.row_losses` of M models.
        groups: (N,) group of each row, any sortable values; `np.arange(N)` where rows are
            independent.
        draws: number of resamplings.
        seed: of the random generator.

    Raises:
        ValueError: no rows, lengths that differ, or values that are not finite.
    """
    row_values = np.asarray(row_values, np.float64)
    if row_values.ndim != 2 or not row_values.shape[1] or row_values.shape[1:] != np.shape(groups):
        raise ValueError(
            f"expected one value and one group for each row, got shapes "
            f"{row_values.shape[1:]} and {np.shape(groups)}"
        )
    if not np.isfinite(row_values).all():
        raise ValueError("values must be finite")

    # A draw then costs one product over groups instead of one over rows. The last sums are the
    # group sizes.
    group = np.unique(groups, return_inverse=True)[1]
    weights = (*row_values, np.ones(len(group)))
    group_sums = np.stack([np.bincount(group, weights=values) for values in weights])

    count = group_sums.shape[1]
    generator = np.random.default_rng(seed)
    totals = np.empty((len(group_sums), draws))
    for draw in range(draws):
        drawn = generator.integers(0, count, size=count, dtype=np.int32)
        times_drawn = np.bincount(drawn, minlength=count).astype(np.float64)

        # One dot product at a time: a matrix product may round equal rows differently, and models
        # with equal losses must have equal means to the last bit.
        totals[:, draw] = [sums @ times_drawn for sums in group_sums]
    return totals[:-1] / totals[-1]


def loss_difference(
    row_values_x: np.ndarray,
    row_values_y: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LossDifference:
    """Compare two models on the same rows by a paired bootstrap of the mean of x minus y.

    x is "better" when the whole interval lies below 0 (losses: lower is better), "worse" when it
    lies above, else "can't tell". With few groups the verdict is always "can't tell": even if all G
    group differences had one sign, a sign test would give p = 2^(1-G), so below 6 groups nothing
    reaches the 95% level.

    Args and errors: as for `loss_interval`.
    """
    differences = np.asarray(row_values_x, np.float64) - np.asarray(row_values_y, np.float64)
    interval = loss_interval(differences, groups, draws, seed, level)
    return _judge_difference(float(differences.mean()), interval, len(np.unique(groups)), level)


def loss_differences(
    row_values: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[list[LossDifference]]:
    """Return `loss_difference` of each of M models to each other, with shared draws."""
    resampled = bootstrap_means(row_values, groups, draws, seed)
    means = np.mean(row_values, axis=1)
    group_count = len(np.unique(groups))

    def compare(x: int, y: int) -> LossDifference:
        interval = _percentile_interval(resampled[x] - resampled[y], level)
        return _judge_difference(float(means[x] - means[y]), interval, group_count, level)

    return [[compare(x, y) for y in range(len(means))] for x in range(len(means))]


def _judge_difference(
    mean: float, interval: tuple[float, float], group_count: int, level: float
) -> LossDifference:
    low, high = interval
    enough_groups = 2.0 ** (1 - group_count) <= 1 - level
    if not enough_groups or low <= 0 <= high:
        return LossDifference(mean, low, high, "can't tell")
    return LossDifference(mean, low, high, "better" if high < 0 else "worse")


def _percentile_interval(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
