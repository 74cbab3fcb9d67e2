"""Cut a batch's attention into tiles that fit a CPU's cache. Use `cut_tiles`.

Sequences are end to end, (N, H, D) with N the sum of their lengths; none is padded to another's
length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Some heads h of n sequences of T tokens each.

    Attributes:
        sequences: numbers of the sequences in the batch.
        tokens: places of their tokens among the N.
        heads: numbers of the heads.
        length: T.
        scores: places of their h·n·T·T scores among those of the batch, tile after tile.
    """

    sequences: slice
    tokens: slice
    heads: slice
    length: int
    scores: slice

    def of(self, x: Tensor) -> Tensor:
        """Return the tile's part of x (N, H, D), a view: (h, n, T, D)."""
        return x[self.tokens, self.heads].unflatten(0, (-1, self.length)).permute(2, 0, 1, 3)

    def of_scores(self, x: Tensor) -> Tensor:
        """Return the tile's part of all scores, one after another in `x`, a view: (h, n, T, T)."""
        heads = self.heads.stop - self.heads.start
        return x[self.scores].view(heads, -1, self.length, self.length)


def cut_tiles(
    lengths: Sequence[int], heads: int, max_scores: int, joined_scores: int
) -> list[Tile]:
    """Cut attention into tiles of at most `max_scores` scores each, or one head of one sequence.

    Args:
        lengths: of the sequences, none 0; neighbours of one length may share a tile.
        heads: number of heads H.
        joined_scores: scores that a shared tile may have, at most `max_scores`. It has a limit of
            its own because sequences have to be copied to be next to each other in one head.
    """
    tiles = []
    first = 0  # number of the first sequence of this length
    start = 0  # place of its first token
    scores = 0  # scores of the tiles so far
    for length, group in groupby(lengths):
        count = len(list(group))
        most_sequences = max(1, joined_scores // (heads * length**2))
        most_heads = max(1, min(heads, max_scores // length**2))
        for offset in range(0, count, most_sequences):
            size = min(most_sequences, count - offset)
            token = start + offset * length
            for head in range(0, heads, most_heads):
                last_head = min(heads, head + most_heads)
                end = scores + (last_head - head) * size * length**2
                tiles.append(
                    Tile(
                        sequences=slice(first + offset, first + offset + size),
                        tokens=slice(token, token + size * length),
                        heads=slice(head, last_head),
                        length=length,
                        scores=slice(scores, end),
                    )
                )
                scores = end
        first += count
        start += count * length
    return tiles


def empty_scores(tiles: Sequence[Tile], like: Tensor) -> Tensor:
    """Return an empty tensor for the scores of all tiles, with the type and device of `like`."""
    return torch.empty(tiles[-1].scores.stop, dtype=like.dtype, device=like.device)
