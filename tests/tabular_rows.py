"""Generate features for tests that need no text: skewed, with outliers, one of them constant."""

import dataclasses

import numpy as np

from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES


def tabular_rows(rows: int, seed: int = 0) -> FeatureTable:
    """Return random features under the names that kit computes."""
    rng = np.random.default_rng(seed)
    sides = rng.exponential(1, (rows, 2, len(SIDE_NAMES))) * rng.exponential(3, len(SIDE_NAMES))
    sides[:, :, 3] = 7.0

    pair = rng.normal(2, 5, (rows, len(PAIR_FEATURES)))
    return FeatureTable(
        SIDE_NAMES, PAIR_FEATURES, sides.astype(np.float32), pair.astype(np.float32)
    )


def exchanged(tabular: FeatureTable) -> FeatureTable:
    """Return the same features with the answers swapped."""
    return dataclasses.replace(tabular, sides=np.ascontiguousarray(tabular.sides[:, ::-1]))
