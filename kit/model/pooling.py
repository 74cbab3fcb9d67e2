"""Pool token states into one vector per sequence. Use `build_pooling`.

States are masked, so that a vector does not depend on how far its batch is padded, and pooled in
float32: sums over 512 states in half precision would lose the digits in which two answers differ.
"""

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """The mean of the states of real tokens: states (N, T, H), mask (N, T) -> (N, H)."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        total = _masked_states(states, mask).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)


class ClsPooling(nn.Module):
    """The state of the first token: states (N, T, H), mask (N, T) -> (N, H)."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, 0].float()


class LastPooling(nn.Module):
    """The state of the last real token: states (N, T, H), mask (N, T) -> (N, H).

    Sequences are padded on the right, so the token is found by their length, and neither by a
    padding id, which some models use for their last token, too, nor by a side.
    """

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        ends = mask.long().sum(1) - 1
        return states[torch.arange(len(states), device=states.device), ends].float()


class AttentionPooling(nn.Module):
    """A learned softmax-weighted mean of real tokens (Yang et al. 2016, one query vector).

    States (N, T, H), mask (N, T) -> (N, H).
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.score = nn.Linear(hidden, 1)

        # Equal scores: training starts from the masked mean.
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = _masked_states(states, mask)
        scores = self.score(states).squeeze(-1)  # (N, T)
        scores = scores.masked_fill(mask == 0, torch.finfo(torch.float32).min)
        return torch.einsum("nt,nth->nh", scores.softmax(-1), states)


def _masked_states(states: Tensor, mask: Tensor) -> Tensor:
    """Return float32 states, 0 on padding: replaced, since an overflow times 0 would be NaN."""
    return states.float().masked_fill((mask == 0).unsqueeze(-1), 0.0)


def build_pooling(kind: str, hidden: int) -> nn.Module:
    """Return the pooling "mean", "cls", "attention" or "last" for states of size `hidden`."""
    if kind == "attention":
        return AttentionPooling(hidden)
    return {"mean": MeanPooling, "cls": ClsPooling, "last": LastPooling}[kind]()
