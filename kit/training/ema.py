"""A running mean of the weights, evaluated and kept in their place: steadier than the last step, for one copy more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.storage.atomic import atomic_file

FILE = "ema.safetensors"  # in a checkpoint, beside the weights that training goes on from


class EMACallback(TrainerCallback):
    """An exponential moving average of the weights over the optimizer's steps.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after step n, as
    TensorFlow's ExponentialMovingAverage has it: the random head it begins with is forgotten at
    once, whatever the decay. Averages of weights along the path generalise better than its end
    (Izmailov et al. 2018; Morales-Brotons et al. 2024, "Exponential Moving Average of Weights in
    Deep Learning: Dynamics and Benefits"). Every process has the same weights, so each keeps the
    same average without a word.
    """

    def __init__(self, model: nn.Module, decay: float):
        learning = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self.decay, self.names, self.weights = decay, list(learning), list(learning.values())
        self.average = [weight.detach().clone() for weight in self.weights]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After a resume the average is in the checkpoint."""
        if state.global_step:
            self._copy(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.average)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Takes in the weights of the step."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        get_ema_multi_avg_fn(decay)(
            self.average, [weight.detach() for weight in self.weights], state.global_step
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Trainer has loaded the weights of the best checkpoint; what was best is their average."""
        self._copy(Path(state.best_model_checkpoint), [weight.data for weight in self.weights])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights; afterwards its own again, the very same ones."""
        self._trade()
        try:
            yield
        finally:
            self._trade()

    def save(self, checkpoint: Path) -> None:
        """Writes the average into a checkpoint."""
        with atomic_file(checkpoint / FILE) as temporary:
            tensors = {
                name: each.contiguous() for name, each in zip(self.names, self.average, strict=True)
            }
            save_file(tensors, temporary, metadata={"format": "pt"})

    def _copy(self, checkpoint: Path, into: list[torch.Tensor]) -> None:
        saved = load_file(checkpoint / FILE)
        for name, tensor in zip(self.names, into, strict=True):
            tensor.copy_(saved[name])

    def _trade(self) -> None:
        for place, weight in enumerate(self.weights):
            weight.data, self.average[place] = self.average[place], weight.data
