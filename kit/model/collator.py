"""Turn rows into the encoder's batches: packs of sequences of like length. Use `Collator`.

A row brings two sequences of different length, and padding all of a batch to its longest would
waste a fifth of the work on real answers. So the sequences of a batch are sorted by length and cut
into the few rectangles with the least padding (`cut_packs`).
"""

import itertools
from typing import Any

import numpy as np
import torch

from kit.data.feature_cache import FeatureTable
from kit.data.tokenize import TokenizedRows

MAX_PACKS = 4

# Lengths for a compiled encoder are padded to a multiple of this, so that few shapes occur.
PAD_MULTIPLE = 64


class Collator:
    """Turn B row numbers into a batch.

    A batch holds
      - `packs`: each with input_ids and attention_mask (n, T), and where the encoder was pretrained
        with two segments token_type_ids: 0 for the prompt, 1 for the response;
      - `order` (B, S): where each row's S sequences are in the packs, one after another;
      - `features`, with a `tabular`: its raw numbers of these rows, float32, `sides` (B, 2, F) and
        `pair` (B, P);
      - `labels`, where they are known: classes (B,), or probabilities (B, 3).

    An `unpadded` batch has one pack with all tokens in one row (1, N), and the sequences' `lengths`
    (n,). With `vectors` a batch has no packs and no order, but what a frozen encoder has made of
    them, `vectors` (B, S, H).

    Args:
        encoded: tokens of all rows.
        pad_id: token id that fills a pack up.
        segments: whether the encoder reads token_type_ids.
        pack_overhead: what another pack costs, in tokens.
        max_tokens: padded tokens of a forward pass, 0 for no limit. A batch of more is a list of
            `parts`, each a batch of its own, and the `labels` of all rows.
        pad_multiple: lengths are padded to a multiple of this.
        first_only: take only the first sequence of each row, S = 1.
        one_length: never put sequences of different lengths into one pack, for an encoder that
            reads its padding.
        unpadded: for an encoder that `attention.unpadded` supports, on a CPU.
        vectors: pooled vectors of all rows (N, S, H), of an encoder that is not trained.
    """

    def __init__(
        self,
        encoded: TokenizedRows,
        pad_id: int,
        *,
        segments: bool,
        labels: np.ndarray | None = None,
        pack_overhead: int = 64,
        tabular: FeatureTable | None = None,
        max_tokens: int = 0,
        pad_multiple: int = 1,
        first_only: bool = False,
        one_length: bool = False,
        unpadded: bool = False,
        vectors: np.ndarray | None = None,
    ):
        self.encoded = encoded
        self.pad_id = pad_id
        self.segments = segments
        self.labels = labels
        self.pack_overhead = pack_overhead
        self.tabular = tabular
        self.max_tokens = max_tokens
        self.pad_multiple = pad_multiple
        self.one_length = one_length
        self.unpadded = unpadded
        self.vectors = vectors
        self.lengths = encoded.lengths[:, :1] if first_only else encoded.lengths  # (N, S)

    def __call__(self, rows: list[int] | np.ndarray) -> dict[str, Any]:
        rows = np.asarray(rows, np.int64)
        if self.vectors is not None:
            return self._vector_batch(rows)
        parts = self._split_rows(rows) if self.max_tokens else [rows]
        if len(parts) == 1:
            return self._batch(rows)
        return {"parts": [self._batch(part) for part in parts]} | self._labels(rows)

    def _split_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into groups of like length, of at most `max_tokens` tokens or one row."""
        longest = self._padded(self.lengths[rows].max(1))
        groups = cut_token_batches(self.lengths.shape[1] * longest, self.max_tokens)
        return [rows[group] for group in groups]

    def _padded(self, lengths: np.ndarray) -> np.ndarray:
        return -(-lengths // self.pad_multiple) * self.pad_multiple

    def _batch(self, rows: np.ndarray) -> dict[str, Any]:
        lengths = self.lengths[rows].ravel()  # (B·S)
        sequences = (rows[:, None] * self.encoded.sides + np.arange(self.lengths.shape[1])).ravel()
        by_length = np.argsort(-lengths, kind="stable")

        ranges = [(0, len(lengths))]
        if self.one_length:
            ranges = equal_ranges(lengths[by_length])
        elif not self.unpadded:
            ranges = cut_packs(self._padded(lengths[by_length]), self.pack_overhead)
        packs = [self.pack(sequences[by_length[start:end]]) for start, end in ranges]

        # The inverse of the sort: the place in the packs of each sequence.
        order = np.empty_like(by_length)
        order[by_length] = np.arange(len(by_length))

        batch = {"packs": packs, "order": torch.from_numpy(order.reshape(len(rows), -1))}
        features = self.features(rows)
        if features is not None:
            batch["features"] = features
        return batch | self._labels(rows)

    def _vector_batch(self, rows: np.ndarray) -> dict[str, Any]:
        """Return a batch of pooled vectors that were computed before."""
        assert self.vectors is not None
        batch: dict[str, Any] = {"vectors": torch.from_numpy(self.vectors[rows])}
        features = self.features(rows)
        if features is not None:
            batch["features"] = features
        return batch | self._labels(rows)

    def _labels(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        if self.labels is None:
            return {}
        dtype = np.int64 if self.labels.ndim == 1 else np.float32
        return {"labels": torch.from_numpy(self.labels[rows].astype(dtype))}

    def features(self, rows: np.ndarray) -> dict[str, torch.Tensor] | None:
        """Return the raw features of these rows, None without a `tabular`."""
        if self.tabular is None:
            return None
        return {
            "sides": torch.from_numpy(self.tabular.sides[rows]),
            "pair": torch.from_numpy(self.tabular.pair[rows]),
        }

    def pack(self, sequences: np.ndarray) -> dict[str, torch.Tensor]:
        """Return sequences, by number (row · S + side), as a rectangle (n, T) or a row (1, N)."""
        starts = self.encoded.starts[sequences]
        lengths = self.encoded.starts[sequences + 1] - starts
        columns = np.arange(int(self._padded(lengths.max())))[None]
        real = columns < lengths[:, None]  # (n, T)

        # Padding reads token 0 of all, which exists, and is then overwritten.
        places = np.where(real, starts[:, None] + columns, 0)
        tokens = np.where(real, self.encoded.tokens[places], self.pad_id)
        pack = {"input_ids": tokens, "attention_mask": real}
        if self.segments:
            first_lengths = self.encoded.first_lengths[sequences][:, None]
            pack["token_type_ids"] = real & (columns >= first_lengths)

        if self.unpadded:
            pack = {name: values[real][None] for name, values in pack.items()}
            pack["lengths"] = lengths
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in pack.items()}


def cut_token_batches(
    lengths: np.ndarray, max_tokens: int, one_length: bool = False
) -> list[np.ndarray]:
    """Cut places 0..N-1, longest first, into batches of at most `max_tokens` tokens, or of one.

    With `one_length` a batch has no two lengths.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    if one_length:
        return [
            batch[start:end] for batch in batches for start, end in equal_ranges(lengths[batch])
        ]
    return batches


def equal_ranges(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Cut sorted lengths into ranges of equal ones."""
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return list(itertools.pairwise(edges))


def cut_packs(
    lengths: np.ndarray, overhead: int, max_packs: int = MAX_PACKS
) -> list[tuple[int, int]]:
    """Cut lengths, sorted from long to short, into at most `max_packs` ranges with least padding.

    Another pack costs as much time as `overhead` tokens, so none is opened that saves less. The
    result is exact: a dynamic program over the places where the length changes.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(lengths)]])
    longest = lengths[edges[:-1]]

    # A pack from edge i to a later edge j is a rectangle as wide as its first, longest sequence.
    sizes = edges[None] - edges[:-1, None]
    pack_costs = np.where(sizes > 0, sizes * longest[:, None] + overhead, np.inf)

    # After k rounds best[j] is the least cost of all before edge j in exactly k packs.
    best = np.full(len(edges), np.inf)
    best[0] = 0
    least = np.inf
    previous: list[np.ndarray] = []
    for _ in range(max_packs):
        costs = best[:-1, None] + pack_costs  # (from edge, to edge)
        best = costs.min(0)
        if best[-1] >= least:
            break
        least = best[-1]
        previous.append(costs.argmin(0))

    # Walk back from the last edge, a pack at a time.
    ranges = []
    end = len(edges) - 1
    for edges_before in reversed(previous):
        start = int(edges_before[end])
        ranges.append((int(edges[start]), int(edges[end])))
        end = start
    return ranges[::-1]
