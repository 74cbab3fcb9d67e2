"""Random bits for dropout masks, cheap enough for a CPU, where torch's own take as long as half of a forward pass."""

import numpy as np
import torch
from torch import Tensor

STEPS = 32768  # chances are multiples of one over this


def in_steps(chance: float) -> int:
    """A chance, as the nearest number of `STEPS` that leaves something over."""
    return min(round(chance * STEPS), STEPS - 1)


class Draws:
    """A stream of random bits by SFC64, seeded by torch's generator: torch's seed and its saved state decide them.

    SFC64 passes PractRand (Doty-Humphrey 2014) and makes 64 bits in less time than torch's Mersenne Twister makes 32;
    a draw takes 16 of them.
    """

    def __init__(self) -> None:
        self.bits = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))

    def signs(self, shape: torch.Size, steps: int) -> Tensor:
        """int16 numbers, each negative with a chance of steps/STEPS, independently."""
        several = self.bits.random_raw(-(-shape.numel() // 4)).view(np.int16)[: shape.numel()]
        return torch.from_numpy(several).bitwise_and_(STEPS - 1).sub_(steps).view(shape)


def flagged(positive: Tensor, signs: Tensor) -> Tensor:
    """`positive` with the signs of `signs` (int16), in place."""
    return positive.copysign_(
        signs.view(positive.dtype) if positive.itemsize == 2 else signs.float()
    )
