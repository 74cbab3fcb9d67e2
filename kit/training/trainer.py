"""transformers' Trainer, almost bare: kit's sampler, loss and evaluation in the places it leaves for them."""

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
)

from kit.evaluation.metrics import accuracy, log_loss
from kit.model.collator import Collator
from kit.model.device import Compute
from kit.model.inference import logits_to_probabilities, predict_logits
from kit.model.pair_model import PairModel
from kit.recipe.spec import TrainSpec
from kit.training.arguments import arguments, steps_per_epoch
from kit.training.awp import WorstNearby
from kit.training.callbacks import PaddingCallback, ScheduleCallback, TrainingProgress
from kit.training.ema import EMACallback
from kit.training.guard import GradientGuard, diverged
from kit.training.loss import of_two_passes, summed_cross_entropy, twice
from kit.training.optim import Schedule, optimizer
from kit.training.sampler import LengthBuckets

Kind = TypeVar("Kind", bound=TrainerCallback)


class RowNumbers(torch.utils.data.Dataset):
    """A dataset of row numbers: the collator reads the rows themselves from the memory map, a batch at a time."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> int:
        return int(self.rows[place])


class PairTrainer(Trainer):
    """Trainer with length-bucketed batches, smoothed cross-entropy in training only, and evaluation by kit's predictor.

    Evaluation is plain log loss in float64 from the logits of all validation rows in order; Trainer's own eval loss
    would contain the label smoothing.
    """

    def __init__(
        self,
        *,
        spec: TrainSpec,
        sampler: LengthBuckets,
        collate: Collator,
        eval_collate: Collator,
        valid: np.ndarray,
        both_orders: bool,
        compute: Compute,
        **kwargs: Any,
    ):
        self.spec, self.sampler, self.valid, self.compute = spec, sampler, valid, compute
        self.eval_collate, self.both_orders = eval_collate, both_orders
        loss = partial(summed_cross_entropy, smoothing=spec.label_smoothing)
        if spec.r_drop:
            loss = of_two_passes(loss, spec.r_drop)
        super().__init__(data_collator=collate, compute_loss_func=loss, **kwargs)
        self.augment = spec.swap_augmentation and not self.model.symmetric
        self.averaging = EMACallback(self.model, spec.ema) if spec.ema else None
        if self.averaging:
            self.add_callback(self.averaging)
        self.nearby = WorstNearby(self.model, spec.awp) if spec.awp else None

    def _get_train_sampler(self, train_dataset: RowNumbers | None = None) -> LengthBuckets:
        return self.sampler

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor | int | None:
        """The rows of the whole optimizer step, or where rows have weights their sum."""
        if not batch_samples or batch_samples[0]["labels"].ndim == 1:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = sum(batch["labels"].sum() for batch in batch_samples).to(device)
        return self.accelerator.gather(weights).sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of a batch: of both orders of the answers, and of two passes, where the recipe asks for it."""
        inputs = inputs | {"augment": True} if self.augment else inputs
        model = twice(model) if self.spec.r_drop else model
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward pass of a batch, or of its parts one after the other; the gradients are their sum."""
        *most, last = inputs.get("parts", [inputs])
        with self.accelerator.no_sync(
            model
        ):  # processes exchange gradients once, when all parts are in
            total = sum(self._pass(model, part, num_items_in_batch) for part in most)
        return total + self._pass(model, last, num_items_in_batch)

    def _pass(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Forward and backward pass, from `awp_start` on at perturbed weights."""
        self._callback(PaddingCallback).add(inputs["packs"])
        if not self.nearby or self.state.global_step < self.spec.awp_start * self.state.max_steps:
            return super().training_step(model, inputs, num_items_in_batch)
        bare = self.accelerator.unwrap_model(
            model
        )  # DDP counts the gradients it reduces, and not these
        bare.train()
        batch = self._prepare_inputs(dict(inputs))
        with self.nearby.around(
            self._scaled(self.compute_loss(bare, batch, num_items_in_batch=num_items_in_batch))
        ):
            return super().training_step(model, inputs, num_items_in_batch)

    def _scaled(self, loss: Tensor) -> Tensor:
        """As fp16 needs it, so that small gradients do not become 0 on their way."""
        return loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds the weights that training goes on from, and their average beside them."""
        super().save_model(output_dir, _internal_call)
        if self.averaging and self.args.should_save:
            self.averaging.save(Path(output_dir or self.args.output_dir))

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were left out because a gradient was not finite."""
        return self._callback(GradientGuard).skipped

    @property
    def padding_waste(self) -> float:
        """The share of padding in what was trained on."""
        return self._callback(PaddingCallback).waste

    def _callback(self, kind: type[Kind]) -> Kind:
        """The one of this kind; a resume makes it anew."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log loss and accuracy of the validation rows, and how much predictions vary; every process gets them."""
        with self.averaging.in_place() if self.averaging else nullcontext():
            bare = self.accelerator.unwrap_model(self.model)
            logits = predict_logits(
                bare, self.eval_collate, self.valid, self.compute, both_orders=self.both_orders
            )
        labels = self.eval_collate.labels[self.valid]
        if not np.isfinite(logits).all():
            raise diverged(
                f"at step {self.state.global_step} the logits are not finite", self.spec.lr
            )
        each = logits_to_probabilities(logits)
        metrics = {
            "eval_log_loss": log_loss(each, labels),
            "eval_accuracy": accuracy(each, labels),
            "eval_spread": float(each.std(0).max()),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def make_trainer(
    spec: TrainSpec,
    model: PairModel,
    collate: Collator,
    eval_collate: Collator,
    train_rows: np.ndarray,
    valid_rows: np.ndarray,
    both_orders: bool,
    compute: Compute,
    checkpoints: Path,
    listen: Callable[[TrainingProgress], None],
) -> PairTrainer:
    """The trainer of one part. `batch_size` is over all processes; what a device cannot hold at once accumulates.

    Args:
        both_orders: validate by the average over both orders of the answers, as predictions will be made.

    Raises:
        RecipeError: batch_size is not a multiple of what the devices take per forward pass.
    """
    args = arguments(spec, len(train_rows), compute, checkpoints)
    optim = optimizer(model, spec)
    schedule = Schedule(optim, spec, args.max_steps)
    sampler = LengthBuckets(collate.lengths[train_rows], spec.batch_size, spec.seed)
    callbacks: list[TrainerCallback] = [
        ScheduleCallback(schedule, sampler, steps_per_epoch(spec, len(train_rows)), listen),
        GradientGuard(spec.lr),
        PaddingCallback(),
    ]
    if spec.patience:
        callbacks.append(EarlyStoppingCallback(spec.patience))
    trainer = PairTrainer(
        spec=spec,
        sampler=sampler,
        collate=collate,
        eval_collate=eval_collate,
        valid=valid_rows,
        both_orders=both_orders,
        compute=compute,
        model=model,
        args=args,
        train_dataset=RowNumbers(train_rows),
        eval_dataset=RowNumbers(valid_rows),
        optimizers=(optim, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if args.process_index:
        torch.manual_seed(spec.seed + args.process_index)  # else all processes would drop out alike
    return trainer
