"""Draw dropout masks cheaply on a CPU. Use `QuickDropout`.

Torch's own masks take as long there as half of a forward pass; elsewhere its dropout runs.
Attention takes its masks from `RandomBits` directly.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Probabilities are multiples of one over this.
STEPS = 32768

# Integers of the same size as each type that can be masked, bit by bit.
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def to_steps(probability: float) -> int:
    """Return a dropout probability as the nearest number of `STEPS`, fewer than all of them."""
    return min(round(probability * STEPS), STEPS - 1)


class RandomBits:
    """A stream of random bits from SFC64.

    It is seeded by torch's generator, so that torch's seed and saved state decide the bits.

    SFC64 passes PractRand (Doty-Humphrey 2014), and makes 64 bits in less time than torch's
    Mersenne Twister makes 32. A draw takes 16 of them.
    """

    def __init__(self) -> None:
        self.generator = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))

    def draw_signs(self, shape: torch.Size, steps: int) -> Tensor:
        """Return int16 numbers, each negative with probability steps/STEPS, independently."""
        words = self.generator.random_raw(-(-shape.numel() // 4))
        numbers = torch.from_numpy(words.view(np.int16)[: shape.numel()])
        return numbers.bitwise_and_(STEPS - 1).sub_(steps).view(shape)


def copy_signs(positive: Tensor, signs: Tensor) -> Tensor:
    """Give `positive` the signs of `signs` (int16), in place."""
    # Types of 16 bits have their sign where int16 has it, so that nothing need be converted.
    return positive.copysign_(
        signs.view(positive.dtype) if positive.itemsize == 2 else signs.float()
    )


class QuickDropout(nn.Dropout):
    """As its base class, with probabilities to the nearest 1/32768."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, in training on a CPU masked by `MaskedDropout`."""
        quick = (
            self.training
            and 0 < self.p < 1
            and input.device.type == "cpu"
            and input.dtype in _INTEGERS
        )
        # torch.compile cannot trace numpy's random numbers.
        if quick and not torch.compiler.is_compiling():
            return MaskedDropout.apply(input, to_steps(self.p))
        return super().forward(input)


class MaskedDropout(torch.autograd.Function):
    """Zero each number with probability steps/STEPS, and scale up the rest to keep the mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        """Return x, masked; the backward pass keeps the mask, two bytes a number."""
        # All bits set where a number is kept, and none where it is dropped.
        kept = RandomBits().draw_signs(x.shape, steps).bitwise_right_shift_(15).bitwise_not_()
        ctx.scale = STEPS / (STEPS - steps)
        ctx.save_for_backward(kept)
        return _masked(x, kept, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, masked in the same way."""
        (kept,) = ctx.saved_tensors
        return _masked(grad, kept, ctx.scale), None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    out = torch.mul(x, scale, out=torch.empty(x.shape, dtype=x.dtype))
    integers = _INTEGERS[x.dtype]
    out.view(integers).bitwise_and_(kept.to(integers))
    return out
