"""Which weight learns how fast, and when: parameter groups, AdamW, and the schedule."""

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from kit.recipe.spec import TrainSpec


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Groups by layer and by weight decay.

    The top layer has `lr`; each one below `layer_decay` times that (Howard & Ruder 2018; ELECTRA's
    fine-tuning); embeddings, DeBERTa's relative positions included, count as the layer below the
    first. Pooling and head have `head_lr`. Norms and biases, that is every vector, have no weight
    decay. With a head-only phase the encoder's groups are marked `waits`.
    """
    numbers = [layer_of(name) for name, _ in model.named_parameters()]
    layers = max((1 + number for number in numbers if number is not None), default=0)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # an adapter learns in its place
        inside = name.startswith("encoder.")
        lr = spec.lr * spec.layer_decay ** _depth(name, layers) if inside else spec.head_lr
        decay, waits = (
            spec.weight_decay if parameter.ndim > 1 else 0.0,
            inside and spec.head_only > 0,
        )
        group = groups.setdefault(
            (lr, decay, waits),
            {"params": [], "lr": lr, "weight_decay": decay} | ({"waits": True} if waits else {}),
        )
        group["params"].append(parameter)
    return list(groups.values())


def _depth(name: str, layers: int) -> int:
    """How many layers below the top one a parameter of the encoder stands."""
    layer = layer_of(name)
    if layer is not None:
        return layers - 1 - layer
    return 0 if "final_norm" in name else layers


def layer_of(name: str) -> int | None:
    """The number of the transformer layer a parameter belongs to; None for what stands outside the layers."""
    found = re.search(r"\.layers?\.(\d+)\.", name)
    return int(found[1]) if found else None


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """Return AdamW with bias correction over the groups of `parameter_groups`.

    Loshchilov & Hutter 2019; Mosbach et al. 2021 show why the correction matters in fine-tuning.
    """
    # The fused kernel takes one pass over memory instead of a dozen.
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(parameter_groups(model, spec), eps=spec.adam_epsilon, fused=fused)


class Schedule(LRScheduler):
    """Linear warm-up, then a linear or cosine fall to 0, a constant, or reductions on plateau.

    A head-only phase comes before the encoder's warm-up: pooling and head warm up at once and stay
    at their peak until the encoder has reached its own; from there on all follow one curve (as
    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features", train the head first). The
    encoder's rate of 0 freezes it, weight decay included, while AdamW's second moments of it build
    up, which is what makes the first real steps small and steady (Liu et al. 2020, "On the Variance
    of the Adaptive Learning Rate", section 3: Adam-2k).

    The plateau factor multiplies the curve, so it composes with warm-up; it is part of the state,
    so it survives a resume, which torch's ReduceLROnPlateau in Trainer does not do: it replaces the
    schedule.
    """

    def __init__(self, optim: torch.optim.Optimizer, spec: TrainSpec, total_steps: int):
        self.kind, self.total = spec.schedule, total_steps
        self.warmup, self.head_only = (
            math.ceil(spec.warmup * total_steps),
            math.ceil(spec.head_only * total_steps),
        )
        self.waits = [group.get("waits", False) for group in optim.param_groups]
        self.factor, self.patience = spec.plateau_factor, spec.plateau_patience
        self.scale, self.best, self.bad = 1.0, math.inf, 0
        super().__init__(optim)

    @property
    def settled(self) -> int:
        """The first update at which every rate has been at its peak."""
        return self.head_only + self.warmup

    def shape(self, step: int, waits: bool = False) -> float:
        """The multiplier of a group's rate for update number `step` (from 0), before plateau reductions."""
        begun = step - (self.head_only if waits else 0)
        if begun < 0:
            return 0.0
        if begun < self.warmup:
            return (begun + 1) / self.warmup
        progress = max(0.0, min(1.0, (step - self.settled) / max(1, self.total - self.settled)))
        if self.kind == "linear":
            return 1 - progress
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    def get_lr(self) -> list[float]:
        """Rates of the groups at the current step."""
        return [
            base * self.shape(self.last_epoch, waits) * self.scale
            for base, waits in zip(self.base_lrs, self.waits, strict=True)
        ]

    def observe(self, loss: float) -> bool:
        """Takes a validation loss; on a plateau reduces the rates from the next step on and says so."""
        if self.kind != "plateau" or self.last_epoch < self.head_only:  # the encoder has not begun
            return False
        if loss < self.best:
            self.best, self.bad = loss, 0
            return False
        self.bad += 1
        if self.bad <= self.patience:
            return False
        self.scale, self.bad = self.scale * self.factor, 0
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr  # Trainer has asked for the next step's already
        return True
