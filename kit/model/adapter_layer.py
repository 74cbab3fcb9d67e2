"""Compute a linear layer with its adapter in fewer passes over memory. Use `quicken_adapters`.

peft scales the adapter's output and adds it to the layer's: two passes over numbers that are as
many as the layer's outputs, and as many again in the backward pass. Here the few numbers between
the adapter's matrices are scaled, and its second product adds to the layer's outputs itself. Only
this module and `kit.model.adapters` import peft.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from kit.attention.dropout import QuickDropout

_ADAPTER = "default"


def quicken_adapters(encoder: nn.Module) -> None:
    """Let the adapters of linear layers compute as `AdaptedLinear`, with kit's dropout.

    Those of quantised layers stay as they are.
    """
    for module in encoder.modules():
        if type(module) is Linear:
            module.__class__ = AdaptedLinear
            dropout = module.lora_dropout[_ADAPTER]
            if type(dropout) is nn.Dropout:
                module.lora_dropout[_ADAPTER] = QuickDropout(dropout.p).train(dropout.training)


class AdaptedLinear(Linear):
    """peft's linear layer with an adapter; the same values, but for rounding."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's outputs (…, out) for inputs (…, in)."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        low = self.lora_A[_ADAPTER](self.lora_dropout[_ADAPTER](x)) * self.scaling[_ADAPTER]
        second: Tensor = self.lora_B[_ADAPTER].get_parameter("weight")
        added = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), second.mT)
        return added.view(result.shape)
