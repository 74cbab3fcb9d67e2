"""From encoded rows to what the encoder runs: packs, each padded only to its own longest sequence.

A row brings two sequences of different length, and padding all of a batch to the longest wastes a fifth of the work
on real answers. So the sequences of a batch are sorted by length and cut into the few rectangles that hold least
padding; `order` brings the pooled vectors back to their rows. An encoder that takes them end to end needs no
padding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kit.data.feature_cache import FeatureTable
from kit.data.tokenize import TokenizedRows

MAX_PACKS = 4
MULTIPLE = 64  # of lengths for a compiled encoder, so that few shapes occur


@dataclass
class Padding:
    """Counts tokens that carry text and tokens the encoder runs, padding included."""

    useful: int = 0
    padded: int = 0

    @property
    def waste(self) -> float:
        """The share of the encoder's tokens that is padding."""
        return 1 - self.useful / self.padded if self.padded else 0.0


class Collator:
    """Turns row numbers into a batch: `packs`, `order` (B, S) and, where labels are known, `labels` (B,) or (B, 3).

    Each pack has input_ids and attention_mask (n, T), and token_type_ids where the encoder was pretrained with two
    segments: 0 for the first (the prompt), 1 for the second (the response). With a `tabular`, `features` are its raw
    numbers of these rows, float32: `sides` (B, 2, F) and `pair` (B, P).

    An `unpadded` batch has one pack whose tokens stand in one row, (1, N), and `lengths` (n,) to tell the sequences.

    Args:
        most: tokens of a forward pass, counted as if it were padded, 0 for no limit; a batch of more is a list of
            `parts`, each a batch for itself, beside the `labels` of them all.
        multiple: lengths are padded to one of it.
        first_only: a row brings its first sequence alone, S = 1.
        unpadded: for an encoder that `kit.attention.unpadded` suits, on a CPU.
    """

    def __init__(
        self,
        encoded: TokenizedRows,
        pad: int,
        *,
        segments: bool,
        labels: np.ndarray | None = None,
        pack_overhead: int = 64,
        count: Padding | None = None,
        tabular: FeatureTable | None = None,
        most: int = 0,
        multiple: int = 1,
        first_only: bool = False,
        unpadded: bool = False,
    ):
        self.encoded, self.pad, self.segments, self.labels = encoded, pad, segments, labels
        self.pack_overhead, self.count, self.tabular = pack_overhead, count, tabular
        self.most, self.multiple, self.unpadded = most, multiple, unpadded
        self.lengths = encoded.lengths[:, :1] if first_only else encoded.lengths  # (N, S)

    def __call__(self, rows: list[int] | np.ndarray) -> dict:
        rows = np.asarray(rows, np.int64)
        parts = self._cut_rows(rows) if self.most else [rows]
        if len(parts) == 1:
            return self._batch(rows)
        return {"parts": [self._batch(part) for part in parts], "labels": self._labels(rows)}

    def _cut_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in groups of at most `most` padded tokens each (at least one row), alike in length."""
        longest = self._padded(self.lengths[rows].max(1))
        order = np.argsort(-longest, kind="stable")
        cuts, start = [], 0
        while start < len(rows):
            size = max(1, self.most // int(self.lengths.shape[1] * longest[order[start]]))
            cuts.append(rows[order[start : start + size]])
            start += size
        return cuts

    def _padded(self, lengths: np.ndarray) -> np.ndarray:
        return -(-lengths // self.multiple) * self.multiple

    def _labels(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(
            self.labels[rows].astype(np.int64 if self.labels.ndim == 1 else np.float32)
        )

    def _batch(self, rows: np.ndarray) -> dict:
        lengths = self.lengths[rows].ravel()  # (B·S)
        sequences = (rows[:, None] * self.encoded.sides + np.arange(self.lengths.shape[1])).ravel()
        by_length = np.argsort(-lengths, kind="stable")
        cuts = [(0, len(lengths))]
        if not self.unpadded:
            cuts = cut_packs(self._padded(lengths[by_length]), self.pack_overhead)
        packs = [self.pack(sequences[by_length[start:end]]) for start, end in cuts]
        order = np.empty_like(by_length)
        order[by_length] = np.arange(len(by_length))
        if self.count is not None:
            self.count.useful += int(lengths.sum())
            self.count.padded += sum(pack["input_ids"].numel() for pack in packs)
        batch = {"packs": packs, "order": torch.from_numpy(order.reshape(len(rows), -1))}
        features = self.features(rows)
        if features is not None:
            batch["features"] = features
        if self.labels is not None:
            batch["labels"] = self._labels(rows)
        return batch

    def features(self, rows: np.ndarray) -> dict[str, torch.Tensor] | None:
        """The raw numbers of these rows, None without a `tabular`."""
        if self.tabular is None:
            return None
        return {
            "sides": torch.from_numpy(self.tabular.sides[rows]),
            "pair": torch.from_numpy(self.tabular.pair[rows]),
        }

    def pack(self, sequences: np.ndarray) -> dict[str, torch.Tensor]:
        """Sequences by number (row · S + side) as one rectangle (n, T), or end to end (1, N)."""
        starts = self.encoded.starts[sequences]
        lengths = self.encoded.starts[sequences + 1] - starts
        at = np.arange(int(self._padded(lengths.max())))[None]
        real = at < lengths[:, None]  # (n, T)
        tokens = np.where(
            real, self.encoded.tokens[np.where(real, starts[:, None] + at, 0)], self.pad
        )
        pack = {"input_ids": tokens, "attention_mask": real}
        if self.segments:
            pack["token_type_ids"] = real & (at >= self.encoded.first_lengths[sequences][:, None])
        if self.unpadded:
            pack = {name: each[real][None] for name, each in pack.items()} | {"lengths": lengths}
        return {name: torch.from_numpy(each.astype(np.int64)) for name, each in pack.items()}


def cut_packs(lengths: np.ndarray, overhead: int, most: int = MAX_PACKS) -> list[tuple[int, int]]:
    """Cuts lengths, sorted from long to short, into at most `most` ranges with the least padded tokens.

    Another pack costs `overhead` tokens' worth of time, so none is opened that saves less. Exact, by dynamic
    programming over the places where the length changes.
    """
    edges = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(lengths)]])
    height = lengths[edges[:-1]]  # longest sequence of a pack that begins at each edge
    best = np.full(len(edges), np.inf)
    best[0] = 0
    cost = np.where(
        edges[None] > edges[:-1, None],
        (edges[None] - edges[:-1, None]) * height[:, None] + overhead,
        np.inf,
    )
    final, chosen = np.inf, []
    back: list[np.ndarray] = []
    for _ in range(most):
        through = best[:-1, None] + cost  # (from edge, to edge)
        back.append(through.argmin(0))
        best = through.min(0)
        if best[-1] >= final:
            break
        final, chosen = best[-1], list(back)
    ranges, end = [], len(edges) - 1
    for step in reversed(chosen):
        start = int(step[end])
        ranges.append((int(edges[start]), int(edges[end])))
        end = start
    return ranges[::-1]
