"""Features of both answers as a head reads them: on one scale, with their difference, and blind to outliers."""

import numpy as np
import torch
from torch import Tensor, nn

from kit.data.feature_cache import FeatureTable

OUTLIER = 5.0  # standard deviations at which a feature is cut off


class Standardiser(nn.Module):
    """Raw features of the sides (B, 2, F) and of the pair (B, P) -> [a; b; a-b; |a-b|; pair] (B, 4F + P), within ±5.

    Means and deviations are those of the rows given to `fit`, both answers taken together, and are saved with the
    weights. A difference has a deviation of its own, about 0: answers to one prompt are more alike than any two.
    """

    def __init__(self, sides: int, pair: int):
        super().__init__()
        self.width = 4 * sides + pair
        for name, size in (
            ("side", sides),
            ("difference", sides),
            ("distance", sides),
            ("pair", pair),
        ):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def fit(self, tabular: FeatureTable, rows: np.ndarray) -> None:
        """Takes means and deviations from `rows` of the table alone; a constant feature has the deviation 1."""
        sides = tabular.sides[rows].astype(np.float64)
        difference = sides[:, 0] - sides[:, 1]
        values = {
            "side": sides.reshape(-1, sides.shape[2]),
            "distance": np.abs(difference),
            "pair": tabular.pair[rows],
        }
        for name, each in values.items():
            self._set(name, each.mean(0, dtype=np.float64), each.std(0, dtype=np.float64))
        self._set("difference", np.zeros(sides.shape[2]), np.sqrt(np.square(difference).mean(0)))

    def _set(self, name: str, mean: np.ndarray, deviation: np.ndarray) -> None:
        for kind, value in (("mean", mean), ("scale", np.where(deviation > 1e-6, deviation, 1))):
            getattr(self, f"{name}_{kind}").copy_(torch.from_numpy(value))

    def forward(self, sides: Tensor, pair: Tensor) -> Tensor:
        a, b = sides.unbind(1)  # (B, F)
        each = (
            ("side", a),
            ("side", b),
            ("difference", a - b),
            ("distance", (a - b).abs()),
            ("pair", pair),
        )
        return torch.cat([self._standardise(name, values) for name, values in each], -1)

    def _standardise(self, name: str, values: Tensor) -> Tensor:
        return ((values - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")).clamp(
            -OUTLIER, OUTLIER
        )
