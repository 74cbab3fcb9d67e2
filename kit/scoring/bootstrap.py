"""How far a mean could be off: intervals that resample whole prompt groups, since rows of one prompt go together.

Source: the cluster bootstrap, Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007; percentile intervals.
"""

from typing import Literal, NamedTuple

import numpy as np

CHUNK = 1 << 18  # groups drawn at once: a few MB of temporaries, which the cache can hold


class Difference(NamedTuple):
    """A paired difference of mean losses, x minus y, its interval, and what may be said of x against y."""

    mean: float
    low: float
    high: float
    verdict: Literal["better", "worse", "can't tell"]


def interval(
    row_values: np.ndarray, groups: np.ndarray, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval (low, high) of the mean of `row_values`, over resampled groups.

    As many groups are drawn with replacement as there are; a draw's mean is the sum of its groups' values over
    the sum of their sizes. The same seed draws the same groups, in whatever order the rows come within a group.

    Args:
        row_values: (N,) finite values, such as `metrics.row_losses`.
        groups: (N,) what row belongs to which group, any sortable values; `np.arange(N)` when rows are independent.
        draws: number of resamplings.
        seed: of the random generator.
        level: the share of draws inside.

    Raises:
        ValueError: no rows, lengths that differ, or values that are not finite.
    """
    row_values = np.asarray(row_values, np.float64)
    if row_values.ndim != 1 or not len(row_values) or row_values.shape != np.shape(groups):
        raise ValueError(f"one value and one group for each row, not {row_values.shape} and {np.shape(groups)}")
    if not np.isfinite(row_values).all():
        raise ValueError("values must be finite")
    member = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(member).astype(np.float64)
    sums = np.bincount(member, weights=row_values)
    count, generator = len(sizes), np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, CHUNK // count)
    for start in range(0, draws, step):
        part = means[start : start + step]
        drawn = generator.integers(0, count, size=(len(part), count), dtype=np.int32)
        part[:] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(
    row_values_x: np.ndarray,
    row_values_y: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compares two losses of the same rows, paired: the interval of the mean of x minus y.

    x is "better" when the whole interval is below 0 (losses: less is better), "worse" when it is above, else one
    "can't tell". Nor can one with few groups: were all G group differences of one sign, a sign test would still
    give 2^(1-G), so below 6 groups no difference reaches the 95% level however the percentiles lie.

    Args and errors: as `interval`.
    """
    row_values = np.asarray(row_values_x, np.float64) - np.asarray(row_values_y, np.float64)
    low, high = interval(row_values, groups, draws, seed, level)
    if 2.0 ** (1 - len(np.unique(groups))) > 1 - level or low <= 0 <= high:
        verdict = "can't tell"
    else:
        verdict = "better" if high < 0 else "worse"
    return Difference(float(row_values.mean()), low, high, verdict)
