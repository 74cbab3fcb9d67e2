"""Which weight learns how fast, and when: parameter groups, AdamW, and the schedule."""

import math
import re
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from kit.recipe import TrainSpec


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Groups by layer and by weight decay.

    The top layer has `lr`; each one below `layer_decay` times that (Howard & Ruder 2018; ELECTRA's fine-tuning);
    embeddings, DeBERTa's relative positions included, count as the layer below the first. Pooling and head have
    `head_lr`. Norms and biases, that is every vector, have no weight decay.
    """
    layers = 1 + max((layer_of(name) or 0 for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        lr = spec.lr * spec.layer_decay ** _depth(name, layers) if name.startswith("encoder.") else spec.head_lr
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
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


def optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW with bias correction (Loshchilov & Hutter 2019; Mosbach et al. 2021 on why the correction matters)."""
    fused = next(model.parameters()).device.type in ("cuda", "cpu")  # one pass over memory instead of a dozen
    return torch.optim.AdamW(parameter_groups(model, spec), eps=spec.adam_epsilon, fused=fused)


class Schedule(LRScheduler):
    """Linear warm-up, then a linear or cosine fall to 0, a constant, or reductions on plateau.

    The plateau factor multiplies the curve, so it composes with warm-up; it is part of the state, so it survives a
    resume, which torch's ReduceLROnPlateau in Trainer does not do: it replaces the schedule.
    """

    def __init__(self, optim: torch.optim.Optimizer, spec: TrainSpec, total_steps: int):
        self.kind, self.total = spec.schedule, total_steps
        self.warmup = math.ceil(spec.warmup * total_steps)
        self.factor, self.patience = spec.plateau_factor, spec.plateau_patience
        self.scale, self.best, self.bad = 1.0, math.inf, 0
        super().__init__(optim)

    def shape(self, step: int) -> float:
        """The multiplier of every rate for update number `step` (from 0), before plateau reductions."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        if self.kind == "linear":
            return 1 - progress
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    def get_lr(self) -> list[float]:
        """Rates of the groups at the current step."""
        return [base * self.shape(self.last_epoch) * self.scale for base in self.base_lrs]

    def observe(self, loss: float) -> bool:
        """Takes a validation loss; on a plateau reduces the rates from the next step on and says so."""
        if self.kind != "plateau":
            return False
        if loss < self.best:
            self.best, self.bad = loss, 0
            return False
        self.bad += 1
        if self.bad <= self.patience:
            return False
        self.scale, self.bad = self.scale * self.factor, 0
        return True
