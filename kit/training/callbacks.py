"""What happens beside the steps: the rate on a plateau, the best checkpoint's place, and progress for a listener."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from kit.training.optim import Schedule
from kit.training.sampler import LengthBuckets


@dataclass(frozen=True)
class TrainingProgress:
    """What a listener hears: the training loss every few steps, and the validation figures after an evaluation.

    seconds_left: at the pace since this process began; evaluations still to come are in it in proportion.
    """

    step: int
    steps: int
    epoch: float
    seconds_left: float
    loss: float | None = None
    lr: float | None = None
    log_loss: float | None = None
    accuracy: float | None = None
    best: bool = False


class ScheduleCallback(TrainerCallback):
    """Lowers the rate on a plateau, keeps track of the best checkpoint, and tells a listener how it goes."""

    def __init__(
        self,
        schedule: Schedule,
        sampler: LengthBuckets,
        steps_per_epoch: int,
        listen: Callable[[TrainingProgress], None],
    ):
        self.schedule, self.sampler, self.steps_per_epoch, self.listen = (
            schedule,
            sampler,
            steps_per_epoch,
            listen,
        )
        self.best, self.began, self.first, self.loss = math.inf, 0.0, 0, None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After a resume the best loss so far is in the state; the run may have been moved since, its paths not."""
        self.began, self.first = time.monotonic(), state.global_step
        self.best = math.inf if state.best_metric is None else state.best_metric
        if state.best_global_step:
            state.best_model_checkpoint = str(
                Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tells the sampler its epoch; accelerate's loaders lose it under torchrun once a resume has wrapped them."""
        self.sampler.set_epoch(state.global_step // self.steps_per_epoch)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluates the last step, whatever the interval; logs before each evaluation: no checkpoint owes a log."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        control.should_log |= control.should_evaluate

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """A training loss for the progress line."""
        if "loss" in logs:
            self.loss = logs["loss"]
            self._tell(state, lr=logs.get("learning_rate"))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """A validation loss: for the schedule, and for the listener."""
        loss = metrics["eval_log_loss"]
        self.schedule.observe(loss)
        best, self.best = loss < self.best, min(loss, self.best)
        self._tell(state, log_loss=loss, accuracy=metrics["eval_accuracy"], best=best)

    def _tell(self, state: TrainerState, **figures: Any) -> None:
        if state.is_world_process_zero:
            done = max(1, state.global_step - self.first)
            left = (time.monotonic() - self.began) / done * (state.max_steps - state.global_step)
            self.listen(
                TrainingProgress(
                    state.global_step,
                    state.max_steps,
                    state.epoch or 0.0,
                    left,
                    loss=self.loss,
                    **figures,
                )
            )


class PaddingCallback(TrainerCallback, ExportableState):
    """Counts the tokens of the batches trained on, and goes on counting after a resume.

    The collator cannot: it is asked for a batch ahead of each checkpoint. No process waits for its GPU for this.
    """

    def __init__(self, useful: int = 0, padded: int = 0):
        self.useful: Tensor | int = useful
        self.padded = padded

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {"useful": int(self.useful), "padded": self.padded}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Trainer saves the state of those only that the checkpoint names; one of an older kit does not name this."""
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def add(self, packs: list[dict[str, Tensor]]) -> None:
        """A batch."""
        self.useful = self.useful + sum(pack["attention_mask"].sum() for pack in packs)
        self.padded += sum(pack["input_ids"].numel() for pack in packs)

    @property
    def waste(self) -> float:
        """The share of the encoder's tokens that is padding."""
        return 1 - int(self.useful) / self.padded if self.padded else 0.0


def decide_together(mine: bool) -> bool:
    """What the first process decides, in every process: if one stopped alone, the others would wait for it for ever."""
    return bool(broadcast_object_list([mine])[0])


class TimeBudget(TrainerCallback):
    """Ends training in time to evaluate, save and finish, keeping the best checkpoint; says early that it will."""

    PROJECT_AT = 20  # steps after which the pace is known well enough

    def __init__(self, deadline: float, say: Callable[[str], None]):
        self.deadline, self.say = deadline, say
        self.began, self.first, self.stepped, self.closing, self.out_of_time = (
            0.0,
            0,
            0.0,
            0.0,
            False,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The clock starts with the first step of this process."""
        self.began, self.first = time.monotonic(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stops when another step would leave too little time for what follows the last one."""
        self.stepped = time.monotonic()
        steps = state.global_step - self.first
        pace = (self.stepped - self.began) / steps
        if math.isfinite(self.deadline) and steps == self.PROJECT_AT:
            self._project(state, pace)
        # Twice the last evaluation and save: both, and then the predictions of the finished model, are still to come.
        reserve = max(
            2 * self.closing,
            (self.deadline - self.began) / 20 if math.isfinite(self.deadline) else 0.0,
        )
        late = self.stepped + pace + reserve > self.deadline and state.global_step < state.max_steps
        if math.isfinite(self.deadline) and decide_together(late):
            self.out_of_time = True
            control.should_training_stop = control.should_log = control.should_evaluate = (
                control.should_save
            ) = True
            self.say(
                f"out of time at step {state.global_step} of {state.max_steps}; ending with the best checkpoint"
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An evaluation and its checkpoint took this long."""
        self.closing = time.monotonic() - self.stepped

    def _project(self, state: TrainerState, pace: float) -> None:
        needed, left = (
            pace * (state.max_steps - state.global_step),
            self.deadline - time.monotonic(),
        )
        if needed > left:
            reached = state.global_step + int(
                0.9 * left / pace
            )  # the rest is for evaluations and the end
            self.say(
                f"at this pace training needs {needed / 3600:.1f} h more, and {left / 3600:.1f} h are left: it will "
                f"end near step {reached} of {state.max_steps}. A schedule that fits: --set train.max_steps={reached}"
            )
