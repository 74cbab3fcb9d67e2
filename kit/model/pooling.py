"""From token states to one vector per sequence: masked, so that padding cannot leak the batch's length, and in float32.

Half-precision sums over 512 states lose the digits that the difference of two answers lives in.
"""

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """The mean of the states of real tokens."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:  # (N, T, H), (N, T) -> (N, H)
        total = _real(states, mask).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)


class ClsPooling(nn.Module):
    """The state of the first token."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, 0].float()


class AttentionPooling(nn.Module):
    """A learned softmax-weighted mean of the states of real tokens (Yang et al. 2016, one query vector)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)  # starts as the masked mean
        nn.init.zeros_(self.score.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = _real(states, mask)
        scores = (
            self.score(states).squeeze(-1).masked_fill(mask == 0, torch.finfo(torch.float32).min)
        )  # (N, T)
        return torch.einsum("nt,nth->nh", scores.softmax(-1), states)


def _real(states: Tensor, mask: Tensor) -> Tensor:
    """States in float32, zero where there is padding: replaced, since an overflow there times zero would be NaN."""
    return states.float().masked_fill((mask == 0).unsqueeze(-1), 0.0)


def build_pooling(kind: str, hidden: int) -> nn.Module:
    """The pooling called `kind`: "mean", "cls" or "attention"."""
    return {"mean": MeanPooling, "cls": ClsPooling, "attention": lambda: AttentionPooling(hidden)}[
        kind
    ]()
