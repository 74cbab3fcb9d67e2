"""Set each weight's learning rate, over the layers and over time.

Use `make_optimizer` for parameter groups and AdamW, and `Schedule` for warm-up, decay and plateaus.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from kit.model.encoder import layer_index
from kit.recipe.spec import TrainSpec


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """Return AdamW with bias correction over the groups of `parameter_groups`.

    Loshchilov & Hutter 2019; Mosbach et al. 2021 show why the correction matters in fine-tuning.
    """
    # The fused kernel takes one pass over memory instead of a dozen.
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(parameter_groups(model, spec), eps=spec.adam_epsilon, fused=fused)


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Return the trained parameters, grouped by learning rate and weight decay.

    The top layer has `lr`, each layer below it `layer_decay` times that of the next one (Howard &
    Ruder 2018; ELECTRA's fine-tuning). Embeddings, including DeBERTa's relative positions, count as
    the layer below the first. Pooling and head have `head_lr`. Norms and biases, that is all
    vectors, have no weight decay. With a head-only phase the encoder's groups are marked `waits`.
    """
    layers = [layer_index(name) for name, _ in model.named_parameters()]
    depth = max((layer + 1 for layer in layers if layer is not None), default=0)

    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        # Weights that adapters replace are frozen.
        if not parameter.requires_grad:
            continue

        lr = spec.head_lr
        in_encoder = name.startswith("encoder.")
        if in_encoder:
            lr = spec.lr * spec.layer_decay ** _distance_from_top(name, depth)
        weight_decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        waits = in_encoder and spec.head_only > 0

        group: dict[str, Any] = {"params": [], "lr": lr, "weight_decay": weight_decay}
        if waits:
            group["waits"] = True
        groups.setdefault((lr, weight_decay, waits), group)["params"].append(parameter)
    return list(groups.values())


def _distance_from_top(name: str, depth: int) -> int:
    """Return how many layers below the top layer an encoder's parameter counts as.

    Args:
        depth: number of the encoder's layers.
    """
    layer = layer_index(name)
    if layer is not None:
        return depth - 1 - layer

    # ModernBERT's final norm comes after the top layer. Other parts are below the layers.
    return 0 if "final_norm" in name else depth


class Schedule(LRScheduler):
    """Warm learning rates up, then lower them: linearly, along a cosine, on plateaus, or not.

    A head-only phase comes before the encoder's warm-up. Pooling and head warm up at once and stay
    at their peak until the encoder has reached its own; from then on all follow one curve (Kumar et
    al. 2022, "Fine-Tuning can Distort Pretrained Features", train the head first). The encoder's
    rate of 0 freezes it, weight decay included, while AdamW's second moments build up. This makes
    the first real steps small and steady (Liu et al. 2020, "On the Variance of the Adaptive
    Learning Rate", section 3: Adam-2k).

    The plateau factor multiplies the curve, so it composes with warm-up. It is part of the state,
    so it survives a resume. Neither holds for torch's ReduceLROnPlateau in Trainer, which replaces
    the schedule.

    Args:
        total_steps: optimizer steps of the whole training.
    """

    def __init__(self, optim: torch.optim.Optimizer, spec: TrainSpec, total_steps: int):
        self.kind = spec.schedule
        self.total = total_steps
        self.warmup = math.ceil(spec.warmup * total_steps)
        self.head_only = math.ceil(spec.head_only * total_steps)
        self.waits = [group.get("waits", False) for group in optim.param_groups]

        # `scale` is the product of the plateau reductions so far, `best` the lowest loss, and `bad`
        # the number of evaluations without a lower one.
        self.factor = spec.plateau_factor
        self.patience = spec.plateau_patience
        self.scale = 1.0
        self.best = math.inf
        self.bad = 0

        # `skipped` is the number of optimizer steps that were left out so far, and `standing` says
        # that the current one is such a step.
        self.skipped = 0
        self.standing = False
        super().__init__(optim)

    @property
    def warmup_steps(self) -> int:
        """The first step at which every rate has been at its peak."""
        return self.head_only + self.warmup

    def curve(self, step: int, waits: bool = False) -> float:
        """Return the factor of a group's rate at a step, from 0, without plateau reductions.

        Args:
            waits: the group's warm-up comes after the head-only phase.
        """
        own_step = step - (self.head_only if waits else 0)
        if own_step < 0:
            return 0.0
        if own_step < self.warmup:
            return (own_step + 1) / self.warmup

        # Skipped steps are no progress, but the last step of the training still ends at 0.
        decay_steps = max(1, self.total - self.skipped - self.warmup_steps)
        progress = max(0.0, min(1.0, (step - self.warmup_steps) / decay_steps))
        if self.kind == "linear":
            return 1 - progress
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    def get_lr(self) -> list[float | Tensor]:
        """Return the groups' rates at the current step."""
        return [
            base * self.curve(self.last_epoch, waits) * self.scale
            for base, waits in zip(self.base_lrs, self.waits, strict=True)
        ]

    def announce_step(self, taken: bool) -> None:
        """Say before an optimizer step whether it will be taken; on a skipped one nothing moves.

        Whether Trainer calls `step` after a skipped step depends on the version of accelerate: with
        fused optimizers it does not see that a step was skipped (its issue 4242).
        """
        self.standing = not taken
        self.skipped += not taken

    def step(self, epoch: int | None = None) -> None:
        """Move on to the next step's rates, unless the optimizer step was skipped."""
        if not self.standing:
            super().step(epoch)

    def observe(self, loss: float) -> bool:
        """Take a validation loss, and reduce the rates on a plateau, from the next step on.

        Returns:
            Whether the rates were reduced.
        """
        # Before the encoder has begun to learn, a constant loss is no plateau.
        if self.kind != "plateau" or self.last_epoch < self.head_only:
            return False
        if loss < self.best:
            self.best = loss
            self.bad = 0
            return False

        self.bad += 1
        if self.bad <= self.patience:
            return False
        self.scale *= self.factor
        self.bad = 0

        # Trainer has already stepped the schedule, so the next step's rates are set here.
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        return True
