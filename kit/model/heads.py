"""From the two pooled vectors to three logits."""

import torch
from torch import Tensor, nn

from kit.schema import SWAP


class FusionHead(nn.Module):
    """The reference study's classifier on [a; b; a-b; a*b], as in Conneau et al. 2017 (InferSent).

    LayerNorm first, because the four blocks differ in magnitude by an order.
    """

    def __init__(self, hidden: int, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden)
        self.dense = nn.Linear(4 * hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(SWAP))

    def forward(self, sides: Tensor) -> Tensor:  # (B, 2, H) -> (B, 3)
        a, b = sides.unbind(1)
        fused = self.norm(torch.cat([a, b, a - b, a * b], -1))
        return self.out(self.dropout(nn.functional.gelu(self.dense(self.dropout(fused)))))


class SymmetricHead(nn.Module):
    """z(a, b) + P z(b, a): swapping A and B permutes the logits exactly, by construction.

    A judge without position bias has this symmetry, so it need not be learned from twice the data. The two summands
    trade places under a swap and floating-point addition commutes, so the equality is to the bit.
    """

    def __init__(self, hidden: int, width: int, dropout: float):
        super().__init__()
        self.pair = FusionHead(hidden, width, dropout)

    def forward(self, sides: Tensor) -> Tensor:  # (B, 2, H) -> (B, 3)
        return self.pair(sides) + self.pair(sides.flip(1))[:, list(SWAP)]


def build(kind: str, hidden: int, width: int, dropout: float) -> nn.Module:
    """The head called `kind`: "fusion" or "symmetric"."""
    return {"fusion": FusionHead, "symmetric": SymmetricHead}[kind](hidden, width, dropout)
