"""Dropout with a cheaper mask on a CPU; elsewhere torch's own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kit.attention.chance import STEPS, Draws, in_steps


class QuickDropout(nn.Dropout):
    """As its base class, with chances to the nearest 1/32768."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, on a CPU in training masked by `Masked`."""
        masks = (
            self.training
            and 0 < self.p < 1
            and input.device.type == "cpu"
            and input.dtype in _LANES
        )
        if (
            masks and not torch.compiler.is_compiling()
        ):  # it could not look into numpy's random numbers
            return Masked.apply(input, in_steps(self.p))
        return super().forward(input)


class Masked(torch.autograd.Function):
    """Zeroes each number with a chance of steps/STEPS and scales up the others, so that the mean stays."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        """x, masked; what is kept for the backward pass is the mask, two bytes a number."""
        kept = (
            Draws().signs(x.shape, steps).bitwise_right_shift_(15).bitwise_not_()
        )  # all bits, or none
        ctx.rise = STEPS / (STEPS - steps)
        ctx.save_for_backward(kept)
        return _masked(x, kept, ctx.rise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient, masked the same way."""
        return _masked(grad, *ctx.saved_tensors, ctx.rise), None


_LANES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def _masked(x: Tensor, kept: Tensor, rise: float) -> Tensor:
    out = torch.mul(x, rise, out=torch.empty(x.shape, dtype=x.dtype))
    lanes = _LANES[x.dtype]
    out.view(lanes).bitwise_and_(kept.to(lanes))
    return out
