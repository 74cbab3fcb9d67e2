"""Configure transformers' Trainer with kit's sampler, loss and evaluation. Use `make_trainer`."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import DDPCommunicationHookType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from kit.costs.steps import EVALUATED_ROWS, steps_per_epoch
from kit.evaluation.metrics import accuracy, log_loss
from kit.model.collator import Collator
from kit.model.device import Compute, out_of_memory
from kit.model.inference import logits_to_probabilities, predict_logits
from kit.model.memory import free_after_failure, free_after_pass
from kit.model.pair_model import PairModel
from kit.model.sharding import Turns
from kit.recipe.spec import TrainSpec
from kit.task import CLASSES
from kit.training.callbacks import PaddingCallback, ScheduleCallback, TrainingProgress
from kit.training.guard import GradientGuard, PassTooLargeError, divergence_error
from kit.training.loss import forward_twice, r_drop_loss, summed_cross_entropy
from kit.training.optim import Schedule
from kit.training.sampler import LengthBuckets
from kit.training.setup import FoldSetup
from kit.training.teacher import distillation_loss
from kit.wording import counted

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
        train_collator: Collator,
        train_rows: np.ndarray,
        eval_collator: Collator,
        valid_rows: np.ndarray,
        valid_labels: np.ndarray,
        both_orders: bool,
        compute: Compute,
        **kwargs: Any,
    ):
        self.spec = spec
        self.sampler = sampler
        self.train_collator = train_collator
        self.train_rows = train_rows
        self.eval_collator = eval_collator
        self.valid_rows = valid_rows
        self.valid_labels = valid_labels
        self.both_orders = both_orders
        self.compute = compute

        loss = partial(summed_cross_entropy, smoothing=spec.label_smoothing)
        if spec.r_drop:
            loss = r_drop_loss(loss, spec.r_drop)
        if spec.teacher:
            loss = distillation_loss(loss, spec.teacher_weight, spec.teacher_temperature)
        super().__init__(
            model=model, data_collator=train_collator, compute_loss_func=loss, **kwargs
        )

        # Rows and tokens of the pass that runs now.
        self.current_pass = (0, 0)

        self.augment = spec.swap_augmentation and not model.symmetric

    def _wrap_model(
        self, model: nn.Module, training: bool = True, dataloader: Any = None
    ) -> nn.Module:
        """Set how DistributedDataParallel will wrap the model; accelerate does it afterwards.

        Trainer has arguments for some of it only, and sets them in another place in each version.
        """
        wrapped = super()._wrap_model(model, training, dataloader)
        handler = self.accelerator.ddp_handler
        if handler is not None:
            for name, value in ddp_settings(model, self.compute.precision).items():
                setattr(handler, name, value)

            # torch 2.13 has another name for it, which accelerate and torch 2.10 do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return wrapped

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
        # With a teacher the first three of six columns are the row's own targets.
        weights = sum(batch["labels"][:, : len(CLASSES)].sum() for batch in batch_samples)
        weights = weights.to(device)
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
        bare = self.accelerator.unwrap_model(model)
        missing = Turns(bare).most(len(parts)) - len(parts)
        try:
            # Processes exchange gradients once, in the backward pass of the last part.
            with self.accelerator.no_sync(model):
                total = sum(self._step(model, part, num_items_in_batch) for part in parts)

                # Divided by infinitely many rows, a pass changes nothing.
                for _ in range(missing):
                    nothing = torch.tensor(math.inf, device=self.args.device)
                    self._step(model, self._smallest_batch(), nothing)
            total = total + self._step(model, last, num_items_in_batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            failed_pass = self.current_pass
            # In the middle of a pass the other processes wait for a layer of a sharded base.
            if bare.is_sharded:
                raise
            if self.args.world_size == 1:
                raise PassTooLargeError(*failed_pass) from error
        else:
            free_after_pass(self.args.device)
            return total
        free_after_failure()

        # The other processes wait for this one's gradients. It sends NaN, from the smallest batch
        # there is, and all of them end the step together (see `GradientGuard`). Only if memory ran
        # out while gradients were exchanged, this fails, and torchrun ends the others.
        self.accelerator.unwrap_model(model).failed_pass = failed_pass
        nothing = torch.tensor(math.nan, device=self.args.device)
        return self._step(model, self._smallest_batch(), nothing)

    def _smallest_batch(self) -> dict[str, Any]:
        """Return the batch of the shortest training row."""
        shortest = self.train_collator.lengths[self.train_rows].max(1).argmin()
        return self.train_collator(self.train_rows[[shortest]])

    def _step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Run forward and backward once."""
        # A frozen encoder's vectors are no tokens.
        packs = inputs.get("packs", [])
        tokens = sum(pack["input_ids"].numel() for pack in packs)
        self.current_pass = (len(inputs["labels"]), tokens)
        self._callback(PaddingCallback).add(packs)
        return super().training_step(model, inputs, num_items_in_batch)

    @property
    def skipped_steps(self) -> int:
        """The optimizer steps that were left out because a gradient was not finite."""
        return self._callback(GradientGuard).skipped

    @property
    def padding_waste(self) -> float:
        """The share of padding among the tokens that were trained on."""
        return self._callback(PaddingCallback).waste

    @property
    def early_stop(self) -> str:
        """Why the training ended before its last step, if the validation loss was the reason."""
        state = self.state
        if not self.spec.patience or state.global_step >= state.max_steps:
            return ""
        waited = self._callback(EarlyStoppingCallback).early_stopping_patience_counter
        if waited < self.spec.patience or state.best_metric is None:
            return ""
        return (
            f"stopped early at step {state.global_step} of {state.max_steps}: the best validation "
            f"loss is still {state.best_metric:.4f}, of step {state.best_global_step}, after "
            f"{counted(waited, 'more evaluation')} (train.patience)"
        )

    def report_evaluation(self, done: int, total: int) -> None:
        """Report that `done` of `total` validation rows are predicted."""
        self._callback(ScheduleCallback).report_evaluation(self.state, done / total)

    def _callback(self, kind: type[Kind]) -> Kind:
        """Return the callback of a class. A resume replaces it, so no attribute refers to one."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return log loss, accuracy and spread of the validation predictions, in all processes."""
        logits = predict_logits(
            self.accelerator.unwrap_model(self.model),
            self.eval_collator,
            self.valid_rows,
            self.compute,
            both_orders=self.both_orders,
            progress=self.report_evaluation,
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


def ddp_settings(model: nn.Module, precision: str) -> dict[str, Any]:
    """Return settings of DistributedDataParallel that save memory and time, by name.

    - Gradients are views of the buckets that are exchanged, not copies: 4 bytes a weight less.
    - Buffers are constant (positions, means of features), so they are not broadcast in each pass.
      Running statistics, as of a batch norm, would be.
    - In fp16 gradients are exchanged in half precision. GPUs that compute in fp16, such as two T4,
      are mostly connected through the host, where the exchange takes as long as the step. The
      gradients are scaled for fp16 already, and one that overflows arrives as infinite, at which
      the loss scaler skips the step and lowers its scale, as it does anyway.
    """
    has_statistics = any(isinstance(module, _NormBase) for module in model.modules())
    hook = DDPCommunicationHookType.FP16 if precision == "fp16" else DDPCommunicationHookType.NO
    return {
        "gradient_as_bucket_view": True,
        "broadcast_buffers": has_statistics,
        "comm_hook": hook,
    }


def choose_evaluated(valid_rows: np.ndarray) -> np.ndarray:
    """Return the validation rows that are evaluated during training, the same in every training."""
    if len(valid_rows) <= EVALUATED_ROWS:
        return valid_rows
    chosen = np.random.default_rng(0).choice(len(valid_rows), EVALUATED_ROWS, replace=False)
    return valid_rows[np.sort(chosen)]


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
        setup.train_collator.lengths[setup.train_rows],
        spec.batch_size,
        spec.seed,
        # On a CPU passes are sized before the training begins, and nothing runs out.
        heaviest_first=setup.compute.device.type != "cpu",
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

    valid_rows = choose_evaluated(setup.valid_rows)
    trainer = PairTrainer(
        spec=spec,
        sampler=sampler,
        train_collator=setup.train_collator,
        train_rows=setup.train_rows,
        eval_collator=setup.eval_collator,
        valid_rows=valid_rows,
        valid_labels=setup.labels[valid_rows],
        # Of a symmetric model one order of the answers says what both say.
        both_orders=swap and not model.symmetric,
        compute=setup.compute,
        model=model,
        args=args,
        train_dataset=RowNumbers(setup.train_rows),
        eval_dataset=RowNumbers(valid_rows),
        optimizers=(schedule.optimizer, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)

    # With one seed for all, every process would draw the same dropout masks.
    if args.process_index:
        torch.manual_seed(spec.seed + args.process_index)
    return trainer
