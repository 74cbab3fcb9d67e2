"""What attention computes at a time: a few sequences of one length, or some heads of one, fit for a CPU's cache.

Sequences stand end to end, (N, H, D) with N the sum of their lengths; nothing is padded to another's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Some heads of n sequences of T tokens each; `sequences` says which of the batch they are.

    Attributes:
        tokens: where they stand.
        scores: where their n·T·T scores a head stand among all of the batch, piece after piece.
    """

    sequences: slice
    tokens: slice
    heads: slice
    length: int
    scores: slice

    def of(self, x: Tensor) -> Tensor:
        """Its part of (N, H, D), a view: (h, n, T, D)."""
        return x[self.tokens, self.heads].unflatten(0, (-1, self.length)).permute(2, 0, 1, 3)

    def of_scores(self, x: Tensor) -> Tensor:
        """Its part of all scores, which are one after the other in `x`, a view: (h, n, T, T)."""
        heads = self.heads.stop - self.heads.start
        return x[self.scores].view(heads, -1, self.length, self.length)


def cut_tiles(lengths: Sequence[int], heads: int, room: int, join: int) -> list[Tile]:
    """Pieces of at most `room` scores each, or one head of one sequence.

    Args:
        lengths: of the sequences, none 0; neighbours of one length may share a piece.
        join: the scores, up to `room`, that a shared piece may have: sequences have to be copied to stand together.
    """
    pieces, first, start, before = [], 0, 0, 0
    for length, same in groupby(lengths):
        count = len(list(same))
        many, some = max(1, join // (heads * length**2)), max(1, min(heads, room // length**2))
        for number in range(0, count, many):
            several = min(many, count - number)
            at = start + number * length
            for head in range(0, heads, some):
                stop = min(heads, head + some)
                after = before + (stop - head) * several * length**2
                sequences, tokens = (
                    slice(first + number, first + number + several),
                    slice(at, at + several * length),
                )
                pieces.append(
                    Tile(sequences, tokens, slice(head, stop), length, slice(before, after))
                )
                before = after
        first, start = first + count, start + count * length
    return pieces


def all_scores(pieces: Sequence[Tile], like: Tensor) -> Tensor:
    """Room for the scores of all pieces, of the type and on the device of `like`."""
    return torch.empty(pieces[-1].scores.stop, dtype=like.dtype, device=like.device)
