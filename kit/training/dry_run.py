"""Take two real optimizer steps of a training, and leave nothing behind. Use `try_steps`."""

import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.data.dataset import Dataset, SampledDataset, sample_dataset
from kit.model.backbones import ResolvedBackbone
from kit.model.device import join_processes
from kit.model.memory import free_after_failure, training_tokens
from kit.recipe.spec import Recipe
from kit.task import TEXTS
from kit.training.arguments import recipe_settings_only, training_arguments
from kit.training.callbacks import ScheduleCallback
from kit.training.optim import Schedule, make_optimizer
from kit.training.setup import prepare_fold
from kit.training.trainer import make_trainer
from kit.training.trial import try_recipe

STEPS = 2

GIB = 2**30


@dataclass(frozen=True)
class TriedSteps:
    """What two steps on the rows with the longest texts took.

    Attributes:
        device: and precision, in words.
        seconds: of each step; the first one also waits for memory.
        tokens: of the rows of each.
        peak_gib: of the GPU's memory, or of the whole process on a CPU.
    """

    device: str
    seconds: list[float]
    tokens: list[int]
    peak_gib: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the last step."""
        return self.tokens[-1] / self.seconds[-1]


class _StepClock(TrainerCallback):
    """Measure each step, from the moment the device is idle to the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._tick()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a step."""
        self._tick()

    def _tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())


@recipe_settings_only()
def try_steps(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    fold: int | str,
    log: Callable[[str], None],
) -> TriedSteps:
    """Load the model, try it on one row, and train it for two steps on the longest rows of a fold.

    All processes of torchrun call this. Weights that are not on this machine are downloaded.

    Raises:
        KitError: as a training would at its beginning.
    """
    # Everything that begins later in a training takes part from the first step.
    spec = dataclasses.replace(recipe.train, max_steps=STEPS, head_only=0.0, warmup=0.0, patience=0)
    short = dataclasses.replace(recipe, train=spec)
    with tempfile.TemporaryDirectory(prefix="kit-dry-run-") as scratch:
        rows = _longest_rows(dataset, fold, STEPS * spec.batch_size)
        few = sample_dataset(dataset, rows, Path(scratch))
        try_recipe(short, backbone, few, log)
        free_after_failure()
        return _take_steps(short, backbone, few, fold)


def _longest_rows(dataset: Dataset, fold: int | str, count: int) -> np.ndarray:
    """Return the numbers of the fold's training rows with the most text, in order."""
    train, _ = dataset.fold_rows(fold)
    table = dataset.train(list(TEXTS))
    sizes = np.zeros(table.num_rows, np.int64)
    for name in TEXTS:
        sizes += [sum(map(len, turns)) for turns in table[name].to_pylist()]
    return np.sort(train[np.argsort(-sizes[train], kind="stable")[:count]])


def _take_steps(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: SampledDataset,
    fold: int | str,
) -> TriedSteps:
    """Train for the recipe's steps, without evaluations and checkpoints."""
    setup = prepare_fold(recipe, backbone, dataset, fold, lambda _: None)
    spec = recipe.train
    args = training_arguments(spec, len(setup.train_rows), setup.compute, dataset.scratch / "out")
    args.eval_strategy = args.save_strategy = "no"
    args.load_best_model_at_end = False
    lengths = setup.train_collator.lengths[setup.train_rows]
    setup.train_collator.max_tokens = training_tokens(
        setup.model.encoder,
        spec,
        setup.compute,
        args.per_device_train_batch_size,
        lengths.shape[1],
        int(lengths.max()),
    )
    schedule = Schedule(make_optimizer(setup.model, spec), spec, args.max_steps)
    trainer = make_trainer(spec, setup, args, schedule, swap=recipe.predict.swap)
    clock = _StepClock(setup.compute.device)
    trainer.add_callback(clock)

    # It would evaluate and save after the last step.
    trainer.remove_callback(ScheduleCallback)

    # Few rows are fewer than two batches, and then seen again.
    order = np.resize(list(trainer.sampler), (STEPS, spec.batch_size))
    trainer.train()
    join_processes().wait_for_everyone()
    return TriedSteps(
        device=setup.compute.reason,
        seconds=np.diff(clock.times).tolist(),
        tokens=lengths[order].sum((1, 2)).tolist(),
        peak_gib=_peak_memory(setup.compute.device) / GIB,
    )


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: of a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else 1024 * peak
