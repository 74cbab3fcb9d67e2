"""Hold rows as classical models see them. Use `pair_rows`."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.baselines.features import STYLE_FEATURES, compute_style_features
from kit.baselines.tfidf import Counts, count_ngrams
from kit.data.features import FEATURES, PAIR_FEATURES, compute_features
from kit.task import GROUP, RESPONSES

# The columns of `PairRows`, by which a saved model is matched to the kit that loads it.
FEATURE_NAMES = {"sides": [*FEATURES, *STYLE_FEATURES], "pair": list(PAIR_FEATURES)}

# The same of a model that reads similarities, too.
SIMILARITY_FEATURE_NAMES = {
    "sides": [*FEATURE_NAMES["sides"], "similarity_to_prompt"],
    "pair": [*FEATURE_NAMES["pair"], "similarity"],
}


class Similarities(NamedTuple):
    """How near texts are in meaning, -1 to 1 (see `baselines.similarity`), (N, 1) each.

    Attributes:
        a, b: of answer A and of answer B to the prompt.
        pair: of the answers to each other.
    """

    a: np.ndarray
    b: np.ndarray
    pair: np.ndarray

    @classmethod
    def blank(cls, rows: int) -> "Similarities":
        """Return those of texts that have nothing in common."""
        return cls(*np.zeros((3, rows, 1), np.float32))


@dataclass(frozen=True)
class PairRows:
    """N rows as classical models see them; nothing here depends on a label or on another row.

    Attributes:
        a, b: features of answer A and of answer B, each (N, F).
        pair: features that are the same when the answers are swapped, (N, P).
        lengths: ln(1 + characters) of A and of B, (N, 2).
        groups: prompt groups (N,); all 0 where they are unknown, as of rows to predict.
        counts: of A and of B, as `tfidf.count_ngrams` returns them; empty for models that do not
            read them.
    """

    a: np.ndarray
    b: np.ndarray
    pair: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    counts: tuple[Counts, Counts] = ((), ())

    def __len__(self) -> int:
        return len(self.a)

    def take(self, rows: np.ndarray) -> "PairRows":
        """Return the rows of these indices."""
        counts_a, counts_b = self.counts
        return PairRows(
            self.a[rows],
            self.b[rows],
            self.pair[rows],
            self.lengths[rows],
            self.groups[rows],
            (
                tuple(block[rows] for block in counts_a),
                tuple(block[rows] for block in counts_b),
            ),
        )

    def with_similarities(self, similarities: Similarities) -> "PairRows":
        """Return the rows with similarities among their features."""
        return replace(
            self,
            a=np.hstack([self.a, similarities.a]),
            b=np.hstack([self.b, similarities.b]),
            pair=np.hstack([self.pair, similarities.pair]),
        )

    @property
    def swapped(self) -> "PairRows":
        """The rows with their answers swapped."""
        return PairRows(
            self.b, self.a, self.pair, self.lengths[:, ::-1], self.groups, self.counts[::-1]
        )


def pair_rows(table: pa.Table, ngrams: bool) -> PairRows:
    """Return rows as classical models see them; counting `ngrams` takes most of the time.

    Args:
        table: prompt and answers as lists of turns, and perhaps prompt groups.
    """
    a, b, pair = compute_features(table)
    style_a, style_b = compute_style_features(table)
    length = FEATURES.index("characters")
    counts = ((), ())
    if ngrams:
        # pyarrow makes its compute functions at import, where a type checker cannot see them.
        join = pc.binary_join  # ty: ignore[missing-attribute]
        texts_a, texts_b = (join(table[name], "\n").to_pylist() for name in RESPONSES)
        counts = (count_ngrams(texts_a), count_ngrams(texts_b))
    a = np.hstack([a, style_a])
    b = np.hstack([b, style_b])
    lengths = np.stack([a[:, length], b[:, length]], axis=1)
    known = GROUP in table.column_names
    groups = table[GROUP].to_numpy() if known else np.zeros(len(a), np.int64)
    return PairRows(a, b, pair, lengths, groups, counts)
