"""Numbers that stand beside the tokens of a row: its features, and how many tokens each side has before it is cut.

They go by name, so that a saved model finds its own among those that a newer kit computes.
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

FORMAT = 2  # part of the cache key: raised when the same texts would have other features
TOKENS = "tokens"  # ln(1 + tokens of a side without a budget)
SIDE_NAMES = (*FEATURES, TOKENS)


@dataclass(frozen=True)
class FeatureTable:
    """The numbers of N rows, float32, as they are: a model standardises them by itself.

    Attributes:
        side_names, sides: F of each answer, (N, 2, F); swapping the answers swaps them.
        pair_names, pair: P that a swap leaves as they are, (N, P).
    """

    side_names: tuple[str, ...]
    pair_names: tuple[str, ...]
    sides: np.ndarray
    pair: np.ndarray

    def beside(self, name: str, sides: np.ndarray) -> "FeatureTable":
        """The same with another number of each answer, (N, 2)."""
        added = np.concatenate([self.sides, np.asarray(sides, np.float32)[:, :, None]], 2)
        return replace(self, side_names=(*self.side_names, name), sides=added)

    def select(self, side_names: Sequence[str], pair_names: Sequence[str]) -> "FeatureTable":
        """Those with these names, in this order.

        Raises:
            RunError: one of them is not here.
        """
        if (tuple(side_names), tuple(pair_names)) == (self.side_names, self.pair_names):
            return self  # as they are, lest memory hold them twice
        unknown = [n for n in side_names if n not in self.side_names] + [
            n for n in pair_names if n not in self.pair_names
        ]
        if unknown:
            raise RunError(
                f"the model reads features that this kit does not compute: {', '.join(unknown)}",
                "Predict with the kit that trained it (`kit` in its origin.json), or train it again.",
            )
        sides = [self.side_names.index(name) for name in side_names]
        pair = [self.pair_names.index(name) for name in pair_names]
        return FeatureTable(
            tuple(side_names), tuple(pair_names), self.sides[:, :, sides], self.pair[:, pair]
        )


def _compute(table: pa.Table, folder: Path) -> None:
    a, b, pair = compute_features(table)
    with atomic_folder(folder) as temporary:
        save_array(temporary / "sides.npy", np.stack([a, b], 1))
        save_array(temporary / "pair.npy", pair)


def features_cached(
    table: pa.Table, content: str, encoded: TokenizedRows, cache: Path
) -> FeatureTable:
    """The numbers of processed rows; those of `content` (a hash of the table) are computed once and kept in `cache`.

    Raises:
        DataError: what is in the cache cannot be read.
    """
    identity = json.dumps([FORMAT, content, FEATURES, PAIR_FEATURES]).encode()
    folder = cache / f"features-{hashlib.sha256(identity).hexdigest()[:16]}"
    make_once(cache, folder.name, folder.exists, lambda: _compute(table, folder))
    try:
        sides, pair = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("sides", "pair"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{folder}: these features cannot be read: {error}",
            "Delete the folder and run the command again: it is only a cache.",
        ) from error
    tokens = np.log1p(encoded.whole_lengths.reshape(len(encoded), -1))
    return FeatureTable(FEATURES, PAIR_FEATURES, sides, np.array(pair)).beside(TOKENS, tokens)
