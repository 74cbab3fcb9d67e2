"""Keep the features of rows on disk, with the token counts added. Use `features_cached`.

Features are found by name: a saved model selects its own among those that a newer kit computes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from kit.data.features import FEATURES, PAIR_FEATURES, compute_features
from kit.data.tokenize import TokenizedRows
from kit.errors import DataError, RunError
from kit.storage.atomic import atomic_folder, save_array
from kit.storage.lock import make_once
from kit.storage.seal import DELETE_HINT, check_seal, is_sealed, seal_folder

# Part of the cache key: raise it when the same texts would have other features.
FORMAT = 2

TOKENS = "tokens"  # ln(1 + tokens of a side without a budget)
SIDE_NAMES = (*FEATURES, TOKENS)


@dataclass(frozen=True)
class FeatureTable:
    """The features of N rows, float32, not standardised (a model does that itself).

    Attributes:
        side_names, sides: F features of each answer, (N, 2, F); swapping the answers swaps them.
        pair_names, pair: P features that a swap does not change, (N, P).
    """

    side_names: tuple[str, ...]
    pair_names: tuple[str, ...]
    sides: np.ndarray
    pair: np.ndarray

    def add_side_feature(self, name: str, sides: np.ndarray) -> "FeatureTable":
        """Return the table with one more feature of each answer, (N, 2)."""
        added = np.concatenate([self.sides, np.asarray(sides, np.float32)[:, :, None]], 2)
        return replace(self, side_names=(*self.side_names, name), sides=added)

    def select(self, side_names: Sequence[str], pair_names: Sequence[str]) -> "FeatureTable":
        """Return the features with these names, in this order.

        Raises:
            RunError: a name is unknown.
        """
        # Without this, the common case would hold the features in memory twice.
        if (tuple(side_names), tuple(pair_names)) == (self.side_names, self.pair_names):
            return self

        unknown = [name for name in side_names if name not in self.side_names]
        unknown += [name for name in pair_names if name not in self.pair_names]
        if unknown:
            raise RunError(
                f"the model reads features that this kit does not compute: {', '.join(unknown)}",
                "Predict with the kit version that trained it (`kit` in its origin.json), or train "
                "it again.",
            )

        sides = [self.side_names.index(name) for name in side_names]
        pair = [self.pair_names.index(name) for name in pair_names]
        return FeatureTable(
            tuple(side_names), tuple(pair_names), self.sides[:, :, sides], self.pair[:, pair]
        )


def features_cached(
    table: pa.Table, digest: str, tokens: TokenizedRows, cache: Path
) -> FeatureTable:
    """Return the features of processed rows, from `cache` if the table is the same.

    Args:
        digest: a hash of the table.
        tokens: of the same rows; their lengths are added as the feature `TOKENS`.

    Raises:
        DataError: the cache cannot be read, or has changed.
    """
    identity = json.dumps([FORMAT, digest, FEATURES, PAIR_FEATURES]).encode()
    folder = cache / f"features-{hashlib.sha256(identity).hexdigest()[:16]}"
    make_once(cache, folder.name, lambda: is_sealed(folder), lambda: _write_features(table, folder))

    check_seal(folder)
    try:
        sides, pair = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("sides", "pair"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{folder}: cannot read the cached features: {error}", DELETE_HINT
        ) from error

    counts = np.log1p(tokens.whole_lengths.reshape(len(tokens), -1))
    return FeatureTable(FEATURES, PAIR_FEATURES, sides, np.array(pair)).add_side_feature(
        TOKENS, counts
    )


def _write_features(table: pa.Table, folder: Path) -> None:
    a, b, pair = compute_features(table)
    with atomic_folder(folder) as temporary:
        save_array(temporary / "sides.npy", np.stack([a, b], 1))
        save_array(temporary / "pair.npy", pair)
        seal_folder(temporary)
