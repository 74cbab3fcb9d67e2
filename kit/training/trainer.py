"""Configure transformers' Trainer with kit's sampler, loss and evaluation. Use `make_trainer`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from kit.evaluation.metrics import accuracy, log_loss
from kit.model.collator import Collator
from kit.model.device import Compute
from kit.model.inference import logits_to_probabilities, predict_logits
from kit.model.pair_model import PairModel
from kit.recipe.spec import TrainSpec
from kit.training.arguments import steps_per_epoch
from kit.training.awp import WeightPerturbation
from kit.training.callbacks import PaddingCallback, ScheduleCallback, TrainingProgress
from kit.training.ema import EMACallback
from kit.training.guard import GradientGuard, divergence_error
from kit.training.loss import forward_twice, r_drop_loss, summed_cross_entropy
from kit.training.optim import Schedule
from kit.training.sampler import LengthBuckets
from kit.training.setup import FoldSetup

Kind = TypeVar("Kind", bound=TrainerCallback)


class RowNumbers(torch.utils.data.Dataset):
    """A dataset of row numbers; the collator reads the rows themselves from the memory map."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


class PairTrainer(Trainer):
    """Trainer with batches by length, smoothed cross-entropy in training, and kit's own evaluation.

    Evaluation computes plain log loss in float64 from the logits of all validation rows. Trainer's
    own evaluation loss would contain the label smoothing.
    """

    def __init__(
        self,
        *,
        model: PairModel,
        spec: TrainSpec,
        sampler: LengthBuckets,
        eval_collator: Collator,
        valid_rows: np.ndarray,
        valid_labels: np.ndarray,
        both_orders: bool,
        compute: Compute,
        **kwargs: Any,
    ):
        self.spec = spec
        self.sampler = sampler
        self.eval_collator = eval_collator
        self.valid_rows = valid_rows
        self.valid_labels = valid_labels
        self.both_orders = both_orders
        self.compute = compute

        loss = partial(summed_cross_entropy, smoothing=spec.label_smoothing)
        if spec.r_drop:
            loss = r_drop_loss(loss, spec.r_drop)
        super().__init__(model=model, compute_loss_func=loss, **kwargs)

        self.augment = spec.swap_augmentation and not model.symmetric
        self.averaging = EMACallback(model, spec.ema) if spec.ema else None
        if self.averaging:
            self.add_callback(self.averaging)
        self.perturbation = WeightPerturbation(model, spec.awp) if spec.awp else None

    def _get_train_sampler(
        self, train_dataset: torch.utils.data.Dataset | None = None
    ) -> LengthBuckets:
        return self.sampler

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor | int | None:
        """Return the number of rows in the optimizer step, or the sum of their weights."""
        if not batch_samples or batch_samples[0]["labels"].ndim == 1:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = sum(batch["labels"].sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(weights).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of a batch, of both orders and of two passes if the recipe says so."""
        inputs = inputs | {"augment": True} if self.augment else inputs
        forward = forward_twice(model) if self.spec.r_drop else model

        # Trainer does no more with it than to call it.
        return super().compute_loss(
            forward,  # ty: ignore[invalid-argument-type]
            inputs,
            return_outputs,
            num_items_in_batch,
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward over a batch, or over its parts in turn; gradients add up."""
        *parts, last = inputs.get("parts", [inputs])

        # Processes exchange gradients once, in the backward pass of the last part.
        with self.accelerator.no_sync(model):
            total = sum(self._step(model, part, num_items_in_batch) for part in parts)
        return total + self._step(model, last, num_items_in_batch)

    def _step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Run forward and backward once; from `awp_start` on, at perturbed weights."""
        self._callback(PaddingCallback).add(inputs["packs"])
        if (
            not self.perturbation
            or self.state.global_step < self.spec.awp_start * self.state.max_steps
        ):
            return super().training_step(model, inputs, num_items_in_batch)

        # The gradients that only find the perturbation must not pass through DDP, which counts what
        # it reduces.
        bare = self.accelerator.unwrap_model(model)
        bare.train()
        batch = self._prepare_inputs(dict(inputs))
        loss = self.compute_loss(bare, batch, num_items_in_batch=num_items_in_batch)
        if self.accelerator.scaler is not None:
            loss = self.accelerator.scaler.scale(loss)

        # Without `return_outputs` it is a tensor.
        with self.perturbation.applied(loss):  # ty: ignore[invalid-argument-type]
            return super().training_step(model, inputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that training continues from, and their average if one is kept."""
        super().save_model(output_dir, _internal_call)
        if self.averaging and self.args.should_save:
            self.averaging.save(Path(output_dir or str(self.args.output_dir)))

    @property
    def skipped_steps(self) -> int:
        """The optimizer steps that were left out because a gradient was not finite."""
        return self._callback(GradientGuard).skipped

    @property
    def padding_waste(self) -> float:
        """The share of padding among the tokens that were trained on."""
        return self._callback(PaddingCallback).waste

    def _callback(self, kind: type[Kind]) -> Kind:
        """Return the callback of a class. A resume replaces it, so no attribute refers to one."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return log loss, accuracy and spread of the validation predictions, in all processes."""
        with self.averaging.average_in_model() if self.averaging else nullcontext():
            logits = predict_logits(
                self.accelerator.unwrap_model(self.model),
                self.eval_collator,
                self.valid_rows,
                self.compute,
                both_orders=self.both_orders,
            )
        if not np.isfinite(logits).all():
            raise divergence_error(
                f"at step {self.state.global_step} the logits are not finite", self.spec.lr
            )

        probabilities = logits_to_probabilities(logits)
        metrics = {
            "eval_log_loss": log_loss(probabilities, self.valid_labels),
            "eval_accuracy": accuracy(probabilities, self.valid_labels),
            "eval_spread": float(probabilities.std(0).max()),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def make_trainer(
    spec: TrainSpec,
    setup: FoldSetup,
    args: TrainingArguments,
    schedule: Schedule,
    *,
    swap: bool = True,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> PairTrainer:
    """Return the trainer of one fold.

    Args:
        args: from `training_arguments`.
        schedule: of the optimizer (see `optim.make_optimizer`).
        swap: predictions will average both orders of the answers, so validation does, too.
    """
    model = setup.model
    sampler = LengthBuckets(
        setup.train_collator.lengths[setup.train_rows], spec.batch_size, spec.seed
    )
    callbacks: list[TrainerCallback] = [
        ScheduleCallback(
            schedule, sampler, steps_per_epoch(spec, len(setup.train_rows)), on_progress
        ),
        GradientGuard(spec.lr),
        PaddingCallback(),
    ]
    if spec.patience:
        callbacks.append(EarlyStoppingCallback(spec.patience))

    trainer = PairTrainer(
        spec=spec,
        sampler=sampler,
        eval_collator=setup.eval_collator,
        valid_rows=setup.valid_rows,
        valid_labels=setup.labels[setup.valid_rows],
        # Of a symmetric model one order of the answers says what both say.
        both_orders=swap and not model.symmetric,
        compute=setup.compute,
        model=model,
        args=args,
        data_collator=setup.train_collator,
        train_dataset=RowNumbers(setup.train_rows),
        eval_dataset=RowNumbers(setup.valid_rows),
        optimizers=(schedule.optimizer, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)

    # With one seed for all, every process would draw the same dropout masks.
    if args.process_index:
        torch.manual_seed(spec.seed + args.process_index)
    return trainer
