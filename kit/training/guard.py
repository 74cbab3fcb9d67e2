"""Stop trainings that learn nothing or diverge. Use `CollapseGuard` and `GradientGuard`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from kit.errors import CollapseError
from kit.evaluation.metrics import log_loss
from kit.recipe.spec import TrainSpec
from kit.training.callbacks import decide_together, register_state
from kit.training.optim import Schedule
from kit.training.setup import target_prior
from kit.wording import counted


class CollapseGuard(TrainerCallback):
    """End a training that predicts the class shares for every row.

    Fine-tuning either starts to learn early or stays at the class shares for good (Mosbach et al.
    2021, "On the Stability of Fine-tuning BERT"). So an evaluation counts as collapsed if its log
    loss is within `MARGIN` of that of the class shares and all rows get nearly the same prediction.

    - From half of the steps on, a collapse is an error.
    - Before that it is an error only if early stopping ends the training at it.
    - A model that had learned and collapsed later just stops, and keeps its best checkpoint.

    Args:
        prior_loss: log loss of the training rows' class shares on the validation rows.
        warmup_steps: steps after which the learning rates are at their peak.
        log: called with a message for the user.
        out_of_time: tells whether the time limit ended the training; then the best checkpoint so
            far is what was asked for, and no error.
    """

    MARGIN = 0.003

    # The largest standard deviation over the rows at which a class's probability counts as nearly
    # constant. Calibrated predictions of three classes that vary by s gain about 4.5 s^2 over the
    # class shares, so 0.02 is worth less than MARGIN.
    SPREAD = 0.02

    # A training of fewer steps is a trial, which may end without having learned anything.
    MIN_STEPS = 100

    def __init__(
        self,
        prior_loss: float,
        warmup_steps: int,
        spec: TrainSpec,
        log: Callable[[str], None] = lambda _: None,
        out_of_time: Callable[[], bool] = lambda: False,
    ):
        self.prior_loss = prior_loss
        self.min_steps = max(self.MIN_STEPS, warmup_steps)
        self.spec = spec
        self.log = log
        self.out_of_time = out_of_time
        self.early_collapse = ""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge an evaluation before its checkpoint is saved, so that a resume judges it again."""
        loss = kwargs["metrics"]["eval_log_loss"]
        spread = kwargs["metrics"]["eval_spread"]
        threshold = self.prior_loss - self.MARGIN

        self.early_collapse = ""
        is_collapsed = loss > threshold and spread < self.SPREAD
        if state.global_step < self.min_steps or not decide_together(is_collapsed):
            return

        problem = (
            f"the training collapsed: at step {state.global_step} of {state.max_steps} it predicts "
            f"nearly the same for every row (validation log loss {loss:.4f}, {self.prior_loss:.4f} "
            f"for the class shares alone; predictions vary by {spread:.4f})"
        )
        has_learned = state.best_metric is not None and state.best_metric < threshold
        if state.global_step < state.max_steps / 2:
            if not has_learned:
                self.early_collapse = problem
            return

        if not has_learned and not self.out_of_time():
            raise CollapseError(problem, suggest_changes(self.spec))
        control.should_training_stop = True
        best = "" if state.best_metric is None else f", log loss {state.best_metric:.4f}"
        self.log(f"{problem}; ending with the best checkpoint{best}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Raise CollapseError if early stopping ended the training at a collapse."""
        if self.early_collapse and not self.out_of_time():
            raise CollapseError(self.early_collapse, suggest_changes(self.spec))


class PassTooLargeError(Exception):
    """Memory ran out in a forward or backward pass of a training; all processes raise it together.

    Attributes:
        rows, tokens: of the pass, padding included; of the largest where several processes failed.
    """

    def __init__(self, rows: int, tokens: int):
        super().__init__(f"out of memory in a pass of {counted(rows, 'row')} and {tokens:,} tokens")
        self.rows = rows
        self.tokens = tokens


class GradientGuard(TrainerCallback, ExportableState):
    """Skip and count steps whose gradient is not finite; end a training that has only such steps.

    The schedule stands still on a skipped step.

    In fp16 the loss scaler skips them itself and lowers its scale, from 65,536 on, until they pass.
    In bf16 and fp32 a single one would turn all weights into NaN for good. Under torchrun every
    process has the same gradient, so all decide alike.
    """

    # How many skipped steps in a row are a divergence. In fp16 the scaler needs some to find its
    # scale.
    MAX_STREAK = 5
    MAX_STREAK_FP16 = 40

    def __init__(self, lr: float):
        self.lr = lr
        self.streak = 0
        self.skipped = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        attributes = {"streak": self.streak, "skipped": self.skipped}
        return {"args": {"lr": self.lr}, "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Register with the state, so that checkpoints contain this callback."""
        register_state(self, state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradient, which is clipped by now."""
        model: torch.nn.Module = kwargs["model"]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        is_finite = math.isfinite(torch.nn.utils.get_total_norm(gradients))
        schedule: Schedule = kwargs["lr_scheduler"]
        schedule.announce_step(taken=is_finite)
        if is_finite:
            self.streak = 0
            return
        self._raise_if_out_of_memory(getattr(model, "failed_pass", None))

        self.streak += 1
        self.skipped += 1
        if self.streak >= (self.MAX_STREAK_FP16 if args.fp16 else self.MAX_STREAK):
            step = state.global_step + 1
            raise divergence_error(
                f"the gradients of {self.streak} steps up to {step} are not finite", self.lr
            )

        # AdamW passes over parameters without a gradient, and leaves their moments alone. In fp16
        # the scaler still has to see the gradient.
        if not args.fp16:
            model.zero_grad(set_to_none=True)

    @staticmethod
    def _raise_if_out_of_memory(failed_pass: tuple[int, int] | None) -> None:
        """Raise PassTooLargeError if the gradient is not finite because memory ran out somewhere.

        A process whose pass does not fit sends NaN to the others, so that all of them come here.
        """
        if dist.is_initialized():
            failures = [each for each in gather_object([failed_pass]) if each]
            if failures:
                raise PassTooLargeError(*max(failures, key=lambda failure: failure[1]))


def prior_log_loss(targets: np.ndarray, labels: np.ndarray) -> float:
    """Return the validation log loss of the constant prediction that fits the training rows best.

    Args:
        targets: of the training rows, labels (N,), or probabilities times weights (N, 3); see
            `Dataset.targets`.
        labels: of the validation rows (M,).
    """
    return log_loss(np.tile(target_prior(targets), (len(labels), 1)), labels)


def divergence_error(reason: str, lr: float) -> CollapseError:
    """Return the error of a training whose numbers are no longer finite."""
    return CollapseError(
        f"the training diverged: {reason}",
        f"Lower the learning rate, for example with --set train.lr={lr / 2:g}, and check that "
        "train.warmup is not 0; or add --resume --restart to try again with half the rates and "
        "another seed.",
    )


def suggest_changes(spec: TrainSpec) -> str:
    """Return what to change in a recipe that collapsed, as `--set` options.

    The remedies are those of Mosbach et al. 2021 and Zhang et al. 2021. What the recipe already has
    is left out.
    """
    remedies = {
        # Below this rate the cause is another one.
        f"train.lr={spec.lr / 2:g}": spec.lr > 1e-5,
        f"train.head_lr={max(1e-4, 5 * spec.lr):g}": spec.head_lr < 2 * spec.lr,
        "train.warmup=0.15": spec.warmup < 0.1,
        "train.layer_decay=0.9": spec.layer_decay > 0.95 and not spec.lora_rank,
        "train.head_only=0.1": not spec.head_only,
        # Fresh layers and adapters exclude each other.
        "train.reinit_layers=1": not spec.reinit_layers and not spec.lora_rank,
    }
    missing = " ".join(f"--set {remedy}" for remedy, useful in remedies.items() if useful)
    start = (
        f"Change the recipe: {missing}; or"
        if missing
        else "The recipe already has the usual remedies;"
    )
    return (
        f"{start} add --resume --restart to try again with half the rates and another seed. "
        "--no-guard lets such a training continue."
    )
