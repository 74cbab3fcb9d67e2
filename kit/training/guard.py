"""Guards: a training that has learned nothing, or whose numbers are none any more, ends early and says what to do."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from kit.errors import CollapseError
from kit.evaluation.metrics import class_prior, log_loss
from kit.recipe.spec import TrainSpec
from kit.training.callbacks import decide_together


class CollapseGuard(TrainerCallback):
    """Ends a training that predicts the class shares for every row.

    Fine-tuning either gets off the ground early or stays at the prior for good (Mosbach et al.
    2021, "On the Stability of Fine-tuning BERT"), so from half of the steps on, warm-up behind it,
    an evaluation within MARGIN of the class shares' log loss with nearly the same prediction for
    every row is an error. So is one at which early stopping ends the training before. A model that
    had learned and then collapsed keeps its best checkpoint and just stops.

    SPREAD is the standard deviation over the rows below which a class's probability is nearly
    constant: calibrated predictions of three classes that vary by s gain about 4.5 s^2 on the class
        shares, so 0.02 is less than MARGIN.
    A training of fewer than LEAST steps is a trial, and nothing is concluded from it.

    Args:
        reference: log loss of the training rows' class shares on the validation rows.
        settled: steps after which the rates are at their peak.
        expired: whether the time budget ended the training; the best there is by then is what was
            asked for.
    """

    MARGIN, SPREAD, LEAST = 0.003, 0.02, 100

    def __init__(
        self,
        reference: float,
        settled: int,
        spec: TrainSpec,
        say: Callable[[str], None] = lambda _: None,
        expired: Callable[[], bool] = lambda: False,
    ):
        self.reference, self.spec, self.say, self.expired = reference, spec, say, expired
        self.least = max(self.LEAST, settled)
        self.verdict = ""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Judges an evaluation; before its checkpoint is written, so that a resume comes by here again."""
        loss, spread = metrics["eval_log_loss"], metrics["eval_spread"]
        self.verdict = ""
        near = loss > self.reference - self.MARGIN and spread < self.SPREAD
        if state.global_step < self.least or not decide_together(near):
            return
        verdict = (
            f"the training collapsed: at step {state.global_step} of {state.max_steps} it predicts nearly the same for "
            f"every row (validation log loss {loss:.4f}, {self.reference:.4f} for the class shares alone; "
            f"predictions vary by {spread:.4f})"
        )
        learned = state.best_metric is not None and state.best_metric < self.reference - self.MARGIN
        late = state.global_step >= state.max_steps / 2
        if late and not learned and not self.expired():
            raise CollapseError(verdict, advice(self.spec))
        if late:
            control.should_training_stop = True
            best = "" if state.best_metric is None else f", log loss {state.best_metric:.4f}"
            self.say(f"{verdict}; ending with the best checkpoint{best}")
        elif not learned:
            self.verdict = verdict

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Early stopping may have come first."""
        if self.verdict and not self.expired():
            raise CollapseError(self.verdict, advice(self.spec))


class GradientGuard(TrainerCallback, ExportableState):
    """Leaves out the steps whose gradient is not finite, counts them, and ends a training that has no others any more.

    In fp16 the loss scaler leaves them out and lowers its scale until they pass, from 65,536 on; in
    bf16 and fp32 one of them would make every weight NaN for good. Every process has the same
    gradient, so all decide alike.
    """

    IN_A_ROW, IN_A_ROW_FP16 = 5, 40

    def __init__(self, lr: float):
        self.lr, self.row, self.skipped = lr, 0, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {"lr": self.lr}, "attributes": {"row": self.row, "skipped": self.skipped}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Trainer saves the state of those only that the checkpoint names; one of an older kit does not name this."""
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        **_: Any,
    ) -> None:
        """Looks at the gradient, clipped by now."""
        gradients = [
            parameter.grad for parameter in model.parameters() if parameter.grad is not None
        ]
        if math.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self.row = 0
            return
        self.row, self.skipped = self.row + 1, self.skipped + 1
        if self.row >= (self.IN_A_ROW_FP16 if args.fp16 else self.IN_A_ROW):
            raise diverged(
                f"the gradients of {self.row} steps up to {state.global_step + 1} are not finite",
                self.lr,
            )
        if not args.fp16:
            model.zero_grad(
                set_to_none=True
            )  # AdamW passes over what has no gradient, its moments too


def constant_loss(targets: np.ndarray, labels: np.ndarray) -> float:
    """Log loss, on the validation rows' labels (M,), of the one prediction that fits the training rows best.

    Args:
        targets: of the training rows, labels (N,), or probabilities times weights (N, 3):
            `Processed.targets`.
    """
    hard = targets.ndim == 1
    shares = (
        class_prior(targets)
        if hard
        else targets.sum(0, dtype=np.float64) / targets.sum(dtype=np.float64)
    )
    return log_loss(np.tile(shares, (len(labels), 1)), labels)


def diverged(how: str, lr: float) -> CollapseError:
    """The error of a training whose numbers are none any more."""
    return CollapseError(
        f"the training diverged: {how}",
        f"Lower the rate, for example --set train.lr={lr / 2:g}, and see that train.warmup is not 0; or add "
        "--resume --restart to try again with half the rates and another seed.",
    )


def advice(spec: TrainSpec) -> str:
    """What to change in a recipe that collapsed, as --set overrides; the cures of Mosbach et al. and Zhang et al. 2021.

    What the recipe has already is not named again.
    """
    cures = {
        f"train.lr={spec.lr / 2:g}": spec.lr > 1e-5,  # below that it is not the rate
        f"train.head_lr={max(1e-4, 5 * spec.lr):g}": spec.head_lr < 2 * spec.lr,
        "train.warmup=0.15": spec.warmup < 0.1,
        "train.layer_decay=0.9": spec.layer_decay > 0.95 and not spec.lora_rank,
        "train.head_only=0.1": not spec.head_only,
        "train.reinit_layers=1": not spec.reinit_layers
        and not spec.lora_rank,  # which go together badly
    }
    named = " ".join(f"--set {cure}" for cure, missing in cures.items() if missing)
    begin = (
        f"Change the recipe: {named}; or add"
        if named
        else "The recipe has the usual cures already; add"
    )
    return (
        f"{begin} --resume --restart to try again with half the rates and another seed. "
        "With --no-guard a training goes on all the same."
    )
