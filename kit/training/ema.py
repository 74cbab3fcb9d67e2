"""Average the weights over training steps, to evaluate and keep the average. Use `EMACallback`."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.storage.atomic import atomic_file

# In a checkpoint, next to the weights that training continues from.
FILE = "ema.safetensors"


class EMACallback(TrainerCallback):
    """Keep an exponential moving average of the weights that are trained.

    After step n, average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)), as
    in TensorFlow's ExponentialMovingAverage: so the random head at the start is soon forgotten,
    however high the decay. Averages of weights along the path generalise better than its end
    (Izmailov et al. 2018; Morales-Brotons et al. 2024, "Exponential Moving Average of Weights in
    Deep Learning: Dynamics and Benefits"). Under torchrun every process has the same weights and
    computes the same average, so none has to be exchanged.
    """

    def __init__(self, model: nn.Module, decay: float):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decay = decay
        self.names = list(trained)
        self.weights = list(trained.values())
        self.average = [weight.detach().clone() for weight in self.weights]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Load the average of the checkpoint that training resumes from."""
        if state.global_step:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self._load(checkpoint, self.average)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Update the average with the weights after a step."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        update = get_ema_multi_avg_fn(decay)
        update(self.average, [weight.detach() for weight in self.weights], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put the best checkpoint's average into the model.

        Trainer has loaded that checkpoint's weights, but what was evaluated there is the average.
        """
        best = Path(str(state.best_model_checkpoint))
        self._load(best, [weight.data for weight in self.weights])

    @contextmanager
    def average_in_model(self) -> Generator[None]:
        """Give the model the average for weights, and its own again at the end, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, checkpoint: Path) -> None:
        """Write the average into a checkpoint's folder."""
        tensors = {
            name: tensor.contiguous() for name, tensor in zip(self.names, self.average, strict=True)
        }
        with atomic_file(checkpoint / FILE) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})

    def _load(self, checkpoint: Path, targets: list[torch.Tensor]) -> None:
        """Copy the average that a checkpoint holds into `targets`."""
        saved = load_file(checkpoint / FILE)
        for name, target in zip(self.names, targets, strict=True):
            target.copy_(saved[name])

    def _swap(self) -> None:
        """Exchange the storage of weights and average, without a copy."""
        for i, weight in enumerate(self.weights):
            weight.data, self.average[i] = self.average[i], weight.data
