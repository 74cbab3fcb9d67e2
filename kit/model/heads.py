"""From the two pooled vectors, and the answers' features beside them, to three logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kit.model.standardiser import Standardiser
from kit.recipe.spec import Shape
from kit.task import SWAP

BESIDE = 256  # width of the features' own layer
GAIN = 4.0  # of their way to the logits: at the rates of a head it learns in hundreds of steps, not thousands


def swap_features(features: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The same features with the answers in each other's place."""
    return features and features | {"sides": features["sides"].flip(1)}


class FusionHead(nn.Module):
    """The reference study's classifier on [a; b; a-b; a*b], as in Conneau et al. 2017 (InferSent).

    LayerNorm first, because the four blocks differ in magnitude by an order. `reads` names the features of a side and
    of the pair. They have a layer of their own, whose output joins the classifier's input and, lest the many inputs
    from the encoder drown it, goes to the logits directly as well (Cheng et al. 2016, Wide & Deep Learning).
    """

    BLOCKS = 4  # vectors of the encoder's size that are fused into the classifier's input

    def __init__(
        self,
        hidden: int,
        width: int,
        dropout: float,
        reads: tuple[Sequence[str], Sequence[str]] | None = None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(self.BLOCKS * hidden)
        self.dense = nn.Linear(self.BLOCKS * hidden + (BESIDE if reads else 0), width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(SWAP))
        if reads:
            self.features = Standardiser(*map(len, reads))
            self.beside = nn.Linear(self.features.width, BESIDE)
            self.short = nn.Linear(BESIDE, len(SWAP))
            nn.init.zeros_(self.short.weight)
            nn.init.zeros_(self.short.bias)

    def forward(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """(B, 2, H), and of the features (B, 2, F) and (B, P) -> (B, 3)."""
        fused = self.norm(self._fuse(sides))
        if features is None:
            return self._classify(fused)
        beside = nn.functional.gelu(
            self.beside(self.dropout(self.features(**features)))
        )  # (B, BESIDE)
        return self._classify(torch.cat([fused, beside], -1)) + GAIN * self.short(
            self.dropout(beside)
        )

    def _fuse(self, sides: Tensor) -> Tensor:
        a, b = sides.unbind(1)
        return torch.cat([a, b, a - b, a * b], -1)

    def _classify(self, fused: Tensor) -> Tensor:
        return self.out(self.dropout(nn.functional.gelu(self.dense(self.dropout(fused)))))


class CrossHead(FusionHead):
    """The same classifier where the encoder read the row whole: on the one vector of the answers as they stand."""

    BLOCKS = 1

    def _fuse(self, sides: Tensor) -> Tensor:
        return sides[:, 0]  # the other is of the answers swapped


class SymmetricHead(nn.Module):
    """z(a, b) + P z(b, a): swapping A and B permutes the logits exactly, by construction.

    A judge without position bias has this symmetry, so it need not be learned from twice the data. The two summands
    trade places under a swap and floating-point addition commutes, so the equality is to the bit.
    """

    def __init__(self, pair: FusionHead):
        super().__init__()
        self.pair = pair

    @property
    def features(self) -> Standardiser:
        """What standardises the features."""
        return self.pair.features

    def forward(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        """(B, 2, H), and of the features (B, 2, F) and (B, P) -> (B, 3)."""
        return (
            self.pair(sides, features)
            + self.pair(sides.flip(1), swap_features(features))[:, list(SWAP)]
        )


def build_head(
    kind: str,
    hidden: int,
    width: int,
    dropout: float,
    reads: tuple[Sequence[str], Sequence[str]] | None = None,
    shape: Shape = "siamese",
) -> nn.Module:
    """The head called `kind`: "fusion" or "symmetric"; with features where `reads` names those of a side and a pair."""
    pair = {"siamese": FusionHead, "cross": CrossHead}[shape](hidden, width, dropout, reads)
    return {"fusion": pair, "symmetric": SymmetricHead(pair)}[kind]
