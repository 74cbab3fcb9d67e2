"""Adjust rates, report progress, count padding and keep to a time limit during training.

Use `ScheduleCallback`, `PaddingCallback` and `TimeBudget`; progress arrives as `TrainingProgress`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from kit.model.memory import taken_memory
from kit.training.optim import Schedule
from kit.training.sampler import LengthBuckets


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training: its loss every few steps, validation figures after an evaluation.

    Attributes:
        seconds_left: of this fold, at the pace since this process began, evaluations included in
            proportion.
        rows_per_second: without evaluations.
        memory: the most bytes taken so far, on a GPU or of main memory.
        loss, lr: as last logged.
        log_loss, accuracy: of an evaluation that has just ended, else None.
        best: whether this evaluation is the best so far.
        best_loss: the best validation loss so far.
        evaluated: the share of rows that an evaluation has predicted, None outside of one.
        fold: the fold's folder, such as "fold1".
        part, parts: its number among the folds that this call trains, from 1, and how many these
            are.
        seconds_left_in_all: until the last of them ends.
    """

    step: int
    steps: int
    epoch: float
    seconds_left: float
    rows_per_second: float = 0.0
    memory: int = 0
    loss: float | None = None
    lr: float | None = None
    log_loss: float | None = None
    accuracy: float | None = None
    best: bool = False
    best_loss: float | None = None
    evaluated: float | None = None
    fold: str = ""
    part: int = 1
    parts: int = 1
    seconds_left_in_all: float | None = None


class ScheduleCallback(TrainerCallback):
    """Lower the rates on a plateau, keep track of the best checkpoint, and report progress.

    Progress is reported whenever losses are logged, and in between once a second.
    """

    REPORT_SECONDS = 1.0

    def __init__(
        self,
        schedule: Schedule,
        sampler: LengthBuckets,
        steps_per_epoch: int,
        on_progress: Callable[[TrainingProgress], None],
    ):
        self.schedule = schedule
        self.sampler = sampler
        self.steps_per_epoch = steps_per_epoch
        self.on_progress = on_progress
        self.best_loss = math.inf
        self.train_loss: float | None = None
        self.lr: float | None = None
        self.start_time = 0.0
        self.start_step = 0
        self.training_since = 0.0
        self.training_seconds = 0.0
        self.report_time = 0.0
        self.device = torch.device("cpu")
        self.step_rows = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the best loss from a resumed state, and correct its path if the run was moved."""
        self.start_time = self.training_since = time.monotonic()
        self.start_step = state.global_step
        self.device = args.device
        passes = args.gradient_accumulation_steps * args.world_size
        self.step_rows = args.per_device_train_batch_size * passes
        if state.best_metric is not None:
            self.best_loss = state.best_metric
        if state.best_global_step:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(checkpoint)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the sampler's epoch, which accelerate's loaders lose in a resume under torchrun."""
        self.sampler.set_epoch(state.global_step // self.steps_per_epoch)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate after the last step, too, and log before each evaluation."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
            control.should_save = True

        # A checkpoint then contains every log entry up to its step, so a resumed history is
        # complete.
        control.should_log |= control.should_evaluate
        now = time.monotonic()
        self.training_seconds += now - self.training_since
        self.training_since = now
        self._report_at_times(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report the training loss."""
        logs = kwargs["logs"]
        if "loss" in logs:
            self.train_loss = logs["loss"]
            self.lr = logs.get("learning_rate")
            self._report(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Give the validation loss to the schedule, and report it."""
        metrics = kwargs["metrics"]
        loss = metrics["eval_log_loss"]
        self.schedule.observe(loss)
        is_best = loss < self.best_loss
        self.best_loss = min(loss, self.best_loss)
        self.training_since = time.monotonic()
        self._report(state, log_loss=loss, accuracy=metrics["eval_accuracy"], best=is_best)

    def report_evaluation(self, state: TrainerState, share: float) -> None:
        """Report how much of an evaluation is done."""
        self._report_at_times(state, evaluated=share)

    def _report_at_times(self, state: TrainerState, **figures: Any) -> None:
        """Report what changes with every step, but not so often that it takes time."""
        if time.monotonic() - self.report_time >= self.REPORT_SECONDS:
            self._report(state, **figures)

    def _report(self, state: TrainerState, **figures: Any) -> None:
        self.report_time = time.monotonic()
        if not state.is_world_process_zero:
            return
        steps_done = max(1, state.global_step - self.start_step)
        seconds = self.report_time - self.start_time
        self.on_progress(
            TrainingProgress(
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch or 0.0,
                seconds_left=seconds / steps_done * (state.max_steps - state.global_step),
                rows_per_second=self.step_rows * steps_done / max(1e-9, self.training_seconds),
                memory=taken_memory(self.device),
                loss=self.train_loss,
                lr=self.lr,
                best_loss=self.best_loss if math.isfinite(self.best_loss) else None,
                **figures,
            )
        )


class PaddingCallback(TrainerCallback, ExportableState):
    """Count the tokens of the batches that were trained on; the count survives a resume.

    The collator cannot count them: it is asked for a batch before each checkpoint that is trained
    on after it. The sum stays on the device until it is read, so no step waits for the GPU.
    """

    def __init__(self, useful: int = 0, padded: int = 0):
        self.useful: Tensor | int = useful
        self.padded = padded

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"useful": int(self.useful), "padded": self.padded}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Register with the state, so that checkpoints contain this callback."""
        register_state(self, state)

    def add(self, packs: list[dict[str, Tensor]]) -> None:
        """Count the packs of a batch."""
        self.useful = self.useful + sum(pack["attention_mask"].sum() for pack in packs)
        self.padded += sum(pack["input_ids"].numel() for pack in packs)

    @property
    def waste(self) -> float:
        """The share of the encoder's tokens that is padding."""
        return 1 - int(self.useful) / self.padded if self.padded else 0.0


class TimeBudget(TrainerCallback):
    """End training early enough to evaluate, save and finish before the deadline.

    Args:
        deadline: as of `time.monotonic`; infinite for none.
    """

    # After this many steps the pace is known well enough to predict the end.
    PROJECT_AT = 20

    def __init__(self, deadline: float, log: Callable[[str], None]):
        self.deadline = deadline
        self.log = log
        self.out_of_time = False
        self.start_time = 0.0
        self.start_step = 0
        self.last_step_time = 0.0
        self.evaluation_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self.start_time = time.monotonic()
        self.start_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop when another step would leave too little time for what follows the last one."""
        self.last_step_time = time.monotonic()
        if not math.isfinite(self.deadline):
            return
        steps_done = state.global_step - self.start_step
        seconds_per_step = (self.last_step_time - self.start_time) / steps_done
        if steps_done == self.PROJECT_AT:
            self._warn_if_too_slow(state, seconds_per_step)

        # After the last step come an evaluation with its checkpoint, and the final predictions.
        # Before the first evaluation a twentieth of the time is assumed.
        reserve = max(2 * self.evaluation_seconds, (self.deadline - self.start_time) / 20)
        is_last_chance = self.last_step_time + seconds_per_step + reserve > self.deadline
        if decide_together(is_last_chance and state.global_step < state.max_steps):
            self.out_of_time = True
            control.should_training_stop = True
            control.should_log = True
            control.should_evaluate = True
            control.should_save = True
            self.log(
                f"time limit reached at step {state.global_step} of {state.max_steps}; "
                "ending with the best checkpoint"
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure how long an evaluation and its checkpoint take."""
        self.evaluation_seconds = time.monotonic() - self.last_step_time

    def _warn_if_too_slow(self, state: TrainerState, seconds_per_step: float) -> None:
        needed = seconds_per_step * (state.max_steps - state.global_step)
        left = self.deadline - time.monotonic()
        if needed <= left:
            return

        # A tenth of the time goes to evaluations and to finishing.
        reached = state.global_step + int(0.9 * left / seconds_per_step)
        self.log(
            f"at this pace training needs {needed / 3600:.1f} h more, and {left / 3600:.1f} h are "
            f"left: it will end near step {reached} of {state.max_steps}. For a schedule that "
            f"fits, add --set train.max_steps={reached}"
        )


def register_state(callback: ExportableState, state: TrainerState) -> None:
    """Add a callback to those whose state Trainer saves.

    Trainer does this itself when training starts anew. After a resume it saves only the callbacks
    that the checkpoint names, and an older kit's checkpoint does not name all of today's.
    """
    # Annotated as a list, but TrainerState makes a dict of it.
    callbacks: dict[str, Any] = state.stateful_callbacks  # ty: ignore[invalid-assignment]
    callbacks.setdefault(type(callback).__name__, callback.state())


def decide_together(mine: bool) -> bool:
    """Return the first process's decision in all processes: one alone cannot stop."""
    return bool(broadcast_object_list([mine])[0])
