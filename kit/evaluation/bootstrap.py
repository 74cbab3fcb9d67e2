"""How far a mean could be off: intervals that resample whole prompt groups, since rows of one prompt go together.

Source: the cluster bootstrap, Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007; percentile intervals.
"""

from typing import Literal, NamedTuple

import numpy as np


class LossDifference(NamedTuple):
    """A paired difference of mean losses, x minus y, its interval, and what may be said of x against y."""

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
    """The percentile interval (low, high) of the mean of `row_values` (N,), over resampled groups.

    Args:
        level: the share of draws inside; the others as `means`.

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
    """`interval` of each of M values of the same rows, (M, N), from one set of draws."""
    return [_percentiles(each, level) for each in bootstrap_means(row_values, groups, draws, seed)]


def bootstrap_means(
    row_values: np.ndarray, groups: np.ndarray, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """The means of M values of each row over resampled groups, (M, draws): every value sees the same draws.

    As many groups are drawn with replacement as there are; a draw's mean is the sum of its groups' values over
    the sum of their sizes. The same seed draws the same groups, in whatever order the rows come within a group.

    Args:
        row_values: (M, N) finite values, such as `metrics.row_losses` of M models.
        groups: (N,) what row belongs to which group, any sortable values; `np.arange(N)` when rows are independent.
        draws: number of resamplings.
        seed: of the random generator.

    Raises:
        ValueError: no rows, lengths that differ, or values that are not finite.
    """
    row_values = np.asarray(row_values, np.float64)
    if row_values.ndim != 2 or not row_values.shape[1] or row_values.shape[1:] != np.shape(groups):
        raise ValueError(
            f"one value and one group for each row, not {row_values.shape[1:]} and {np.shape(groups)}"
        )
    if not np.isfinite(row_values).all():
        raise ValueError("values must be finite")
    member = np.unique(groups, return_inverse=True)[1]
    sums = np.stack(
        [np.bincount(member, weights=each) for each in (*row_values, np.ones(len(member)))]
    )
    count, generator = sums.shape[1], np.random.default_rng(seed)
    found = np.empty((len(sums), draws))
    for draw in range(draws):
        drawn = generator.integers(0, count, size=count, dtype=np.int32)
        times = np.bincount(drawn, minlength=count).astype(np.float64)
        found[:, draw] = [
            each @ times for each in sums
        ]  # one by one: equal rows have equal means, to the bit
    return found[:-1] / found[-1]


def loss_difference(
    row_values_x: np.ndarray,
    row_values_y: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> LossDifference:
    """Compares two losses of the same rows, paired: the interval of the mean of x minus y.

    x is "better" when the whole interval is below 0 (losses: less is better), "worse" when it is above, else one
    "can't tell". Nor can one with few groups: were all G group differences of one sign, a sign test would still
    give 2^(1-G), so below 6 groups no difference reaches the 95% level however the percentiles lie.

    Args and errors: as `interval`.
    """
    row_values = np.asarray(row_values_x, np.float64) - np.asarray(row_values_y, np.float64)
    low, high = loss_interval(row_values, groups, draws, seed, level)
    return _difference(float(row_values.mean()), low, high, len(np.unique(groups)), level)


def loss_differences(
    row_values: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[list[LossDifference]]:
    """`difference` of every one of M losses of the same rows, (M, N), to every one, from one set of draws."""
    drawn, whole = bootstrap_means(row_values, groups, draws, seed), np.mean(row_values, axis=1)
    count = len(np.unique(groups))
    return [
        [
            _difference(
                float(whole[x] - whole[y]), *_percentiles(drawn[x] - drawn[y], level), count, level
            )
            for y in range(len(drawn))
        ]
        for x in range(len(drawn))
    ]


def _difference(mean: float, low: float, high: float, groups: int, level: float) -> LossDifference:
    told = 2.0 ** (1 - groups) <= 1 - level and not low <= 0 <= high
    return LossDifference(
        mean, low, high, ("better" if high < 0 else "worse") if told else "can't tell"
    )


def _percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
