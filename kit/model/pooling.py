"""From token states to one vector per sequence: masked, so that padding cannot leak the batch's length, and in float32.

Half-precision sums over 512 states lose the digits that the difference of two answers lives in.
"""

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """The mean of the states of real tokens."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:  # (N, T, H), (N, T) -> (N, H)
        weights = mask.unsqueeze(-1).float()
        return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


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
        states = states.float()
        scores = self.score(states).squeeze(-1).masked_fill(mask == 0, float("-inf"))  # (N, T)
        return torch.einsum("nt,nth->nh", scores.softmax(-1), states)


def build(kind: str, hidden: int) -> nn.Module:
    """The pooling called `kind`: "mean", "cls" or "attention"."""
    return {"mean": MeanPooling, "cls": ClsPooling, "attention": lambda: AttentionPooling(hidden)}[kind]()
