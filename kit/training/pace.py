"""Say how long a training will take: estimated as it begins, and measured after some steps.

Use `announce_training`, `announce_reading` and `PaceCallback`.
"""

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.costs.estimate import estimate_training
from kit.costs.lengths import RowLengths
from kit.costs.sizes import model_sizes
from kit.costs.steps import evaluated_rows, training_steps
from kit.errors import BackboneError
from kit.model.device import Compute, join_processes
from kit.model.probe import measure_device
from kit.recipe.spec import Recipe, TrainSpec
from kit.training.sampler import LengthBuckets

if TYPE_CHECKING:
    from kit.training.setup import FoldSetup

# Steps whose time is measured. The first step is not one of them: it waits for memory and kernels.
MEASURED_STEPS = 20


def announce_training(
    recipe: Recipe,
    setup: "FoldSetup",
    folds: int,
    fold_seconds: float,
    log: Callable[[str], None],
) -> None:
    """Log the rows, tokens, steps and estimated time of a fold, from the speed of the device.

    The steps of a head on a frozen encoder's vectors are quick; the reading was announced before.

    Args:
        folds: how many are still to be trained, this one included.
        fold_seconds: that a fold before this one took, 0 for the first.
    """
    tokens = setup.train_collator.lengths[setup.train_rows]
    lengths = RowLengths(tokens, len(setup.train_rows), len(setup.valid_rows))
    steps = training_steps(recipe.train, len(setup.train_rows))
    text = (
        f"{len(setup.train_rows):,} rows of {tokens.shape[1]} x {lengths.mean_tokens:.0f} tokens, "
        f"{steps.total:,} steps"
    )
    if fold_seconds:
        log(f"{text}: {format_left(fold_seconds, folds)}, if it is as long as the fold before")
        return
    hours = None
    if not recipe.train.frozen:
        hours = _estimate_hours(recipe, setup.model.encoder_config, lengths, setup.compute)
    log(text if hours is None else f"{text}: {format_left(3600 * hours, folds)} (estimated)")


def announce_reading(
    recipe: Recipe,
    config: dict[str, Any],
    tokens: np.ndarray,
    compute: Compute,
    log: Callable[[str], None],
) -> None:
    """Log how long a frozen encoder takes to read all rows, which it does once.

    Args:
        config: the encoder's.
        tokens: of each sequence of each row (N, S).
    """
    text = f"the frozen encoder reads all {len(tokens):,} rows once"
    hours = _estimate_hours(recipe, config, RowLengths(tokens, len(tokens), 0), compute)
    log(text if hours is None else f"{text}: {format_left(3600 * hours, 1)} (estimated)")


def _estimate_hours(
    recipe: Recipe, config: dict[str, Any], lengths: RowLengths, compute: Compute
) -> float | None:
    """Return the hours of a fold here, None where the encoder's sizes are unknown."""
    try:
        sizes = model_sizes(config, recipe.backbone)
    except BackboneError:
        return None
    device = measure_device(compute)
    processes = join_processes().num_processes
    return estimate_training(recipe, sizes, lengths, device, processes).hours


class PaceCallback(TrainerCallback):
    """Log once how fast the steps are, and how much time is left.

    Args:
        sampler: whose order says how long the rows of the measured steps are.
        valid_rows: of the fold.
        folds: how many are still to be trained, this one included.
    """

    def __init__(
        self,
        spec: TrainSpec,
        sampler: LengthBuckets,
        valid_rows: int,
        folds: int,
        log: Callable[[str], None],
    ):
        self.spec = spec
        self.sampler = sampler
        self.valid_rows = valid_rows
        self.folds = folds
        self.log = log
        self.first_step = -1
        self.seconds = 0.0
        self.resumed = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the time since the last step, and report after enough of them."""
        now = time.monotonic()
        if self.first_step < 0:
            self.first_step = state.global_step
        elif state.global_step <= self.first_step + MEASURED_STEPS:
            self.seconds += now - self.resumed
            if state.global_step == self.first_step + MEASURED_STEPS:
                self._report(state)
        self.resumed = now

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the time of an evaluation out."""
        self.resumed = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the time of a checkpoint out."""
        self.resumed = time.monotonic()

    def _report(self, state: TrainerState) -> None:
        row_seconds = self.seconds / self._mean_rows(state)
        step_seconds = row_seconds * self.spec.batch_size
        steps = training_steps(self.spec, len(self.sampler))

        # An evaluation runs the forward pass, a third of a step, or half of it where the backward
        # pass leaves frozen weights out; with recomputed activations a step has one more.
        stages = (2 if self.spec.lora_rank else 3) + self.spec.gradient_checkpointing
        row_evaluation = row_seconds / stages
        evaluations = steps.evaluations - state.global_step // steps.between_evaluations
        left = step_seconds * (state.max_steps - state.global_step)
        left += row_evaluation * evaluated_rows(evaluations, self.valid_rows)
        whole = step_seconds * state.max_steps
        whole += row_evaluation * evaluated_rows(steps.evaluations, self.valid_rows)
        total = left + whole * (self.folds - 1)
        text = f"measured: {1 / row_seconds:.1f} rows/s, {format_duration(left)} left"
        if self.folds > 1:
            text += f", {format_duration(total)} with the {self.folds - 1} folds after it"
        self.log(text)

    def _mean_rows(self, state: TrainerState) -> float:
        """Return how many rows of mean length had as many tokens as the measured steps' rows.

        Batches are of like lengths, and the longest may come first, so that rows alone say little.
        """
        batch = self.spec.batch_size
        per_epoch = training_steps(self.spec, len(self.sampler)).per_epoch
        start = state.global_step - MEASURED_STEPS
        tokens = self.sampler.longer + self.sampler.shorter
        first = start % per_epoch
        if first + MEASURED_STEPS > per_epoch:
            return MEASURED_STEPS * batch
        order = islice(self.sampler, first * batch, (first + MEASURED_STEPS) * batch)
        measured = np.fromiter(order, np.int64)
        return float(tokens[measured].sum() / tokens.mean())


def format_left(seconds: float, folds: int) -> str:
    """Return the time of a fold in words, and that of all where there are several."""
    text = f"about {format_duration(seconds)}"
    return f"{text} a fold, {format_duration(folds * seconds)} in all" if folds > 1 else text


def format_duration(seconds: float) -> str:
    """Return a duration in hours, minutes or seconds, whichever is at least one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{math.ceil(seconds)} s"
