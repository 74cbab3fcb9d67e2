"""Classify a row from its two pooled vectors and its answers' features. Use `build_head`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kit.data.feature_cache import FeatureTable
from kit.recipe.spec import Shape
from kit.task import SWAP

# Standard deviations at which a feature is cut off.
OUTLIER = 5.0

# Width of the features' own layer.
FEATURE_WIDTH = 256

# Gain of the features' direct way to the logits: with it they are learned in hundreds of steps at a
# head's learning rate, and in thousands without.
SHORTCUT_GAIN = 4.0


class Standardiser(nn.Module):
    """Standardise raw features and their differences, within ±5.

    Sides (B, 2, F) and pair (B, P) -> [a; b; a-b; |a-b|; pair] (B, 4F + P).

    Means and deviations are those of the rows given to `fit_rows`, of both answers together, and
    are saved with the weights. The difference has a deviation of its own, and 0 for its mean: two
    answers to one prompt are more alike than any two, and swapping them must only change its sign.
    """

    def __init__(self, sides: int, pair: int):
        super().__init__()
        self.width = 4 * sides + pair
        sizes = {"side": sides, "difference": sides, "distance": sides, "pair": pair}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def fit_rows(self, tabular: FeatureTable, rows: np.ndarray) -> None:
        """Take means and deviations from these rows; a constant feature gets the deviation 1."""
        sides = tabular.sides[rows].astype(np.float64)
        difference = sides[:, 0] - sides[:, 1]
        values = {
            "side": sides.reshape(-1, sides.shape[2]),
            "distance": np.abs(difference),
            "pair": tabular.pair[rows],
        }
        for name, array in values.items():
            self._set_scale(name, array.mean(0, dtype=np.float64), array.std(0, dtype=np.float64))
        deviation = np.sqrt(np.square(difference).mean(0))
        self._set_scale("difference", np.zeros(sides.shape[2]), deviation)

    def _set_scale(self, name: str, mean: np.ndarray, deviation: np.ndarray) -> None:
        scale = np.where(deviation > 1e-6, deviation, 1)
        getattr(self, f"{name}_mean").copy_(torch.from_numpy(mean))
        getattr(self, f"{name}_scale").copy_(torch.from_numpy(scale))

    def forward(self, sides: Tensor, pair: Tensor) -> Tensor:
        a, b = sides.unbind(1)  # (B, F)
        blocks = [
            self._standardise("side", a),
            self._standardise("side", b),
            self._standardise("difference", a - b),
            self._standardise("distance", (a - b).abs()),
            self._standardise("pair", pair),
        ]
        return torch.cat(blocks, -1)

    def _standardise(self, name: str, values: Tensor) -> Tensor:
        centred = values - getattr(self, f"{name}_mean")
        return (centred / getattr(self, f"{name}_scale")).clamp(-OUTLIER, OUTLIER)


def swap_features(features: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return the features with the answers swapped."""
    return features and features | {"sides": features["sides"].flip(1)}


class FusionHead(nn.Module):
    """The reference study's classifier on [a; b; a-b; a*b], as in Conneau et al. 2017 (InferSent).

    Sides (B, 2, H), and of the features sides (B, 2, F) and pair (B, P) -> logits (B, 3).

    LayerNorm comes first, because the four blocks differ in magnitude by an order. Features have a
    layer of their own. Its output joins the classifier's input, where the encoder's many inputs
    could drown it, so it also goes to the logits directly (Cheng et al. 2016, Wide & Deep
    Learning).

    Args:
        hidden: size H of a side's vector.
        width: size of the classifier's hidden layer.
        dropout: of each layer's input.
        feature_names: names of the features of a side and of the pair, None where the head reads
            none.
    """

    # Vectors of size H in the classifier's input.
    BLOCKS = 4

    def __init__(
        self,
        hidden: int,
        width: int,
        dropout: float,
        feature_names: tuple[Sequence[str], Sequence[str]] | None = None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(self.BLOCKS * hidden)
        self.dense = nn.Linear(
            self.BLOCKS * hidden + (FEATURE_WIDTH if feature_names else 0), width
        )
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(SWAP))
        if feature_names:
            self.features = Standardiser(*map(len, feature_names))
            self.beside = nn.Linear(self.features.width, FEATURE_WIDTH)
            self.short = nn.Linear(FEATURE_WIDTH, len(SWAP))
            nn.init.zeros_(self.short.weight)
            nn.init.zeros_(self.short.bias)

    @torch.no_grad()
    def start_from_prior(self, prior: np.ndarray) -> None:
        """Make every row's first logits those of the class probabilities `prior` (3,).

        A decoder's last state is large, and what random weights make of it is far off the prior:
        the first hundred steps would only undo it.
        """
        nn.init.zeros_(self.out.weight)

        # A class that no training row has is rare, not impossible.
        self.out.bias.copy_(torch.from_numpy(np.log(prior.clip(1e-3))))

    def forward(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        fused = self.norm(self._fuse(sides))
        if features is None:
            return self._classify(fused)
        standardised = self.dropout(self.features(**features))
        beside = nn.functional.gelu(self.beside(standardised))  # (B, FEATURE_WIDTH)
        logits = self._classify(torch.cat([fused, beside], -1))
        return logits + SHORTCUT_GAIN * self.short(self.dropout(beside))

    def _fuse(self, sides: Tensor) -> Tensor:
        a, b = sides.unbind(1)
        return torch.cat([a, b, a - b, a * b], -1)

    def _classify(self, fused: Tensor) -> Tensor:
        return self.out(self.dropout(nn.functional.gelu(self.dense(self.dropout(fused)))))


class CrossHead(FusionHead):
    """The same classifier for the shapes "cross" and "judge", where a vector is of the whole row.

    Sides (B, 2, H) are of both orders of the answers; the second is left out.
    """

    BLOCKS = 1

    def _fuse(self, sides: Tensor) -> Tensor:
        return sides[:, 0]


def swap_classes(logits: Tensor) -> Tensor:
    """Permute the classes of logits (B, 3) as swapping the answers does.

    With a list for an index, a GPU would wait for its copy from the host in every pass.
    """
    columns = logits.unbind(1)
    return torch.stack([columns[number] for number in SWAP], 1)


class SymmetricHead(nn.Module):
    """z(a, b) + P z(b, a): swapping A and B permutes the logits exactly.

    Sides (B, 2, H), and of the features sides (B, 2, F) and pair (B, P) -> logits (B, 3).

    A judge without position bias has this symmetry, so it need not be learned from twice the data.
    The two summands trade places under a swap and floating-point addition commutes, so the equality
    is to the bit.
    """

    def __init__(self, pair: FusionHead):
        super().__init__()
        self.pair = pair

    @property
    def features(self) -> Standardiser:
        """The standardiser of the features."""
        return self.pair.features

    def start_from_prior(self, prior: np.ndarray) -> None:
        """Make every row's first logits those of `prior` (3,), the same for A and for B."""
        # Both orders add their logits.
        self.pair.start_from_prior(np.sqrt((prior + prior[list(SWAP)]) / 2))

    def forward(self, sides: Tensor, features: dict[str, Tensor] | None = None) -> Tensor:
        straight = self.pair(sides, features)
        swapped = self.pair(sides.flip(1), swap_features(features))
        return straight + swap_classes(swapped)


def build_head(
    kind: str,
    hidden: int,
    width: int,
    dropout: float,
    feature_names: tuple[Sequence[str], Sequence[str]] | None = None,
    shape: Shape = "siamese",
) -> FusionHead | SymmetricHead:
    """Return the head "fusion" or "symmetric" with random weights, for `FusionHead`'s arguments."""
    pair_class = FusionHead if shape == "siamese" else CrossHead
    pair = pair_class(hidden, width, dropout, feature_names)
    return {"fusion": pair, "symmetric": SymmetricHead(pair)}[kind]
