"""Train one fold of a run, from rows to a finished folder. Use `train_fold`."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list

import kit
from kit.costs.steps import steps_per_epoch
from kit.data.dataset import Dataset
from kit.errors import DeviceError, RecipeError
from kit.evaluation.metrics import accuracy, log_loss, swap_gap
from kit.fold_dir import FoldDir
from kit.model.adapters import merge_adapters
from kit.model.backbones import ResolvedBackbone
from kit.model.device import base_dtype, join_processes, out_of_memory
from kit.model.inference import logits_to_probabilities, predict_logits, softmax_logits
from kit.model.memory import free_after_failure, training_tokens
from kit.predictions import make_predictions, write_predictions
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.atomic import write_json
from kit.training.arguments import training_arguments
from kit.training.callbacks import TimeBudget, TrainingProgress
from kit.training.checkpoints import (
    CHECKPOINTS,
    checkpoint_files,
    checkpoint_step,
    explain_full_disk,
    last_checkpoint,
    place_checkpoints,
    read_pass_tokens,
    remove_checkpoints,
    require_no_checkpoints,
    write_pass_tokens,
)
from kit.training.guard import CollapseGuard, PassTooLargeError, prior_log_loss
from kit.training.loggers import open_loggers
from kit.training.optim import Schedule, make_optimizer
from kit.training.pace import PaceCallback, announce_training
from kit.training.setup import FoldSetup, prepare_fold
from kit.training.trainer import PairTrainer, make_trainer
from kit.wording import first_line

# How often a training continues with smaller passes after memory ran out. Three halvings are an
# eighth of the pass that was too large; beyond that the fault is another one.
MEMORY_RETRIES = 3


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, as opposed to what: nothing here is part of the recipe.

    Attributes:
        resume: continue an interrupted training from its last checkpoint.
        guard: end a training that learns nothing.
        report_to: loggers, each a name of `loggers.LOGGERS`.
        scratch: a folder, as on a larger disk, for the checkpoints until a fold is finished.
        deadline: time, as of `time.monotonic`, at which training ends with its best checkpoint.
        on_progress: called with the losses as training goes on.
        log: called with each message for the user.
        note: called with each message that may be the same for all folds, to be said once.
        folds: how many are still to be trained, this one included.
        fold_seconds: that the longest fold before this one took, 0 for the first.
    """

    resume: bool = False
    guard: bool = True
    report_to: Sequence[str] = ()
    scratch: Path | None = None
    deadline: float = math.inf
    on_progress: Callable[[TrainingProgress], None] = lambda _: None
    log: Callable[[str], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    folds: int = 1
    fold_seconds: float = 0.0


def train_fold(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    run: Run,
    fold: int | str,
    options: TrainingOptions,
    attempts: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Train `recipe` on all rows but those of `fold`, and return what its metrics.json holds.

    A finished fold is left alone. An interrupted one continues with `options.resume`, and ends with
    the same weights as if it had not been interrupted. Under torchrun every process calls this.

    Args:
        fold: a number, or "holdout".
        attempts: earlier attempts that collapsed, for the record.

    Raises:
        RunError: an interrupted training is there and `options.resume` is false.
        RecipeError: the recipe does not fit the backbone or the devices.
        DeviceError: the device cannot run this, or its memory is too small.
        CollapseError: the training learned nothing, or diverged.
    """
    folder = run.fold(fold)
    checkpoints = folder.path / CHECKPOINTS
    if folder.is_finished:
        folder.check_files(weights=False)
        options.log(f"{folder.path} is already finished")
        # A process that was killed at its very end leaves its checkpoints.
        remove_checkpoints(checkpoints)
        return folder.metrics
    if not options.resume:
        require_no_checkpoints(folder.path)

    started = time.monotonic()
    retries = 0
    while True:
        try:
            return _train_from_last_checkpoint(
                recipe, backbone, dataset, folder, fold, options, attempts, started
            )
        except PassTooLargeError as error:
            if retries == MEMORY_RETRIES or error.rows == 1:
                raise _memory_error(recipe, error.tokens, error.tokens // error.rows) from error
            failed_tokens = error.tokens

        # The model and its optimizer are gone only now that the exception is.
        free_after_failure()
        tokens = failed_tokens // 2
        options.log(
            f"out of memory with {failed_tokens:,} tokens in a forward pass; continuing from the "
            f"last checkpoint with up to {tokens:,} in one (the optimizer's steps stay the same)"
        )
        if join_processes().is_main_process:
            write_pass_tokens(checkpoints, tokens)
        join_processes().wait_for_everyone()
        options = dataclasses.replace(options, resume=True)
        retries += 1


def _train_from_last_checkpoint(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    folder: FoldDir,
    fold: int | str,
    options: TrainingOptions,
    attempts: Sequence[dict[str, Any]],
    started: float,
) -> dict[str, Any]:
    """Train a fold to its end, and return its metrics.

    Raises:
        PassTooLargeError: memory ran out in a pass, in all processes together.
    """
    checkpoints = folder.path / CHECKPOINTS
    spec = recipe.train
    teacher = Run(folder.path.parent).teacher if spec.teacher else None
    setup = prepare_fold(recipe, backbone, dataset, fold, options.note, teacher)
    announce_training(recipe, setup, options.folds, options.fold_seconds, options.log)
    ranks = join_processes()
    with ranks.main_process_first():
        place_checkpoints(folder.path, options.scratch)
    args = training_arguments(spec, len(setup.train_rows), setup.compute, checkpoints)
    rows = args.per_device_train_batch_size
    sequences = setup.train_collator.lengths.shape[1]
    setup.train_collator.max_tokens = _choose_pass_tokens(recipe, setup, rows, checkpoints)
    schedule = Schedule(make_optimizer(setup.model, spec), spec, args.max_steps)
    trainer = make_trainer(
        spec, setup, args, schedule, swap=recipe.predict.swap, on_progress=options.on_progress
    )

    budget = TimeBudget(options.deadline, options.log)
    trainer.add_callback(budget)
    pace = PaceCallback(spec, trainer.sampler, len(setup.valid_rows), options.folds, options.log)
    trainer.add_callback(pace)
    if options.guard:
        prior_loss = prior_log_loss(setup.targets[setup.train_rows], trainer.valid_labels)
        guard = CollapseGuard(
            prior_loss, schedule.warmup_steps, spec, options.log, lambda: budget.out_of_time
        )
        trainer.add_callback(guard)

    # Continuing from the very last step in the middle of an epoch, Trainer would take one more
    # step.
    with ranks.main_process_first():
        ends_mid_epoch = args.max_steps % steps_per_epoch(spec, len(setup.train_rows)) != 0
        last = last_checkpoint(
            checkpoints,
            below=args.max_steps if ends_mid_epoch else math.inf,
            files=checkpoint_files(setup.compute.precision, ranks.num_processes),
            log=options.log,
        )
    if options.resume and last:
        options.log(f"resuming from step {checkpoint_step(last)}")

    with (
        open_loggers(options.report_to, recipe, folder.path, len(attempts) + 1) as loggers,
        _explain_out_of_memory(recipe, rows, sequences),
        explain_full_disk(folder.path),
    ):
        for logger in loggers:
            trainer.add_callback(logger)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.early_stop:
            options.log(trainer.early_stop)
        if spec.lora_rank and not setup.model.base:
            merge_adapters(setup.model.encoder)
        logits = predict_logits(
            setup.model,
            setup.eval_collator,
            setup.valid_rows,
            setup.compute,
            both_orders=recipe.predict.swap,
            progress=trainer.report_evaluation,
        )

    metrics = {
        **_validation_metrics(logits, setup),
        **_training_metrics(recipe, setup, trainer),
        "out_of_time": budget.out_of_time,
        "restarts": list(attempts),
        "minutes": (time.monotonic() - started) / 60,
        "versions": {
            "kit": kit.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if ranks.is_main_process:
        _write_fold(folder, setup, logits, trainer.state.log_history, metrics)
    ranks.wait_for_everyone()
    return metrics


def _choose_pass_tokens(recipe: Recipe, setup: FoldSetup, rows: int, checkpoints: Path) -> int:
    """Return the most tokens of a pass, 0 for no limit, the same in all processes and resumes."""
    ranks = join_processes()
    tokens = None
    if ranks.is_main_process:
        tokens = read_pass_tokens(checkpoints)
        if tokens is None:
            lengths = setup.train_collator.lengths[setup.train_rows]
            tokens = training_tokens(
                setup.model.encoder,
                recipe.train,
                setup.compute,
                rows,
                lengths.shape[1],
                int(lengths.max(initial=1)),
            )
            write_pass_tokens(checkpoints, tokens)
    return broadcast_object_list([tokens])[0]


def _validation_metrics(logits: np.ndarray, setup: FoldSetup) -> dict[str, Any]:
    """Score the validation logits: (V, 3), or (V, 2, 3) for both orders of the answers."""
    labels = setup.labels[setup.valid_rows]
    probabilities = logits_to_probabilities(logits)
    has_both_orders = logits.ndim == 3
    return {
        "log_loss": log_loss(probabilities, labels),
        "accuracy": accuracy(probabilities, labels),
        "swap_gap": swap_gap(*softmax_logits(logits).swapaxes(0, 1)) if has_both_orders else None,
    }


def _training_metrics(recipe: Recipe, setup: FoldSetup, trainer: PairTrainer) -> dict[str, Any]:
    """Record how far the training came, on which rows, and at which rates."""
    state = trainer.state
    epochs = state.epoch or 0.0
    best_step = state.best_global_step or 0
    return {
        "best_epoch": best_step / state.global_step * epochs,
        "best_step": best_step,
        "steps": state.global_step,
        "epochs": epochs,
        "train_rows": len(setup.train_rows),
        "valid_rows": len(setup.valid_rows),
        "cut_sides": setup.truncated,
        "padding_waste": trainer.padding_waste,
        "parameters": sum(parameter.numel() for parameter in setup.model.parameters()),
        "skipped_steps": trainer.skipped_steps,
        "lr": recipe.train.lr,
        "head_lr": recipe.train.head_lr,
        "seed": recipe.train.seed,
        "device": setup.compute.reason,
    }


def _write_fold(
    folder: FoldDir,
    setup: FoldSetup,
    logits: np.ndarray,
    history: list[dict[str, float]],
    metrics: dict[str, Any],
) -> None:
    """Write model, predictions, history, and last metrics.json; then remove the checkpoints."""
    setup.model.save_pretrained(folder.path, setup.tokenizer, base_dtype(setup.compute))
    predictions = make_predictions(setup.ids[setup.valid_rows], logits_to_probabilities(logits))
    write_predictions(predictions, folder.predictions_path)

    # Keys in the order that a checkpoint gives them, so that a resumed history is the same file.
    # The gradient norm of a skipped step is infinite, which JSON cannot say.
    tidy = [
        {name: value if math.isfinite(value) else None for name, value in sorted(entry.items())}
        for entry in history
    ]
    write_json(folder.history_path, {"log_history": tidy})
    write_json(folder.metrics_path, metrics | {"files": folder.file_digests()})
    remove_checkpoints(folder.path / CHECKPOINTS)


@contextmanager
def _explain_out_of_memory(recipe: Recipe, rows: int, sequences: int) -> Generator[None]:
    """Turn running out of memory into advice.

    Args:
        rows: of a forward pass.
        sequences: of a row.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        compiler = ("torch._dynamo", "torch._inductor")
        if recipe.train.compile and type(error).__module__.startswith(compiler):
            raise RecipeError(
                f"torch.compile failed on this encoder: {first_line(error)}",
                "Set train.compile=false.",
            ) from error
        if not out_of_memory(error):
            raise

        row_tokens = sequences * recipe.encode.max_tokens
        tokens = rows * row_tokens
        if recipe.train.micro_tokens:
            tokens = max(row_tokens, min(recipe.train.micro_tokens, tokens))
        raise _memory_error(recipe, tokens, row_tokens) from error


def _memory_error(recipe: Recipe, tokens: int, row_tokens: int) -> DeviceError:
    """Return the error of a pass of so many tokens, with what to change in the recipe."""
    cures = []
    if tokens > row_tokens:
        cures.append(
            f"--set train.micro_tokens={max(row_tokens, tokens // 2)} "
            "(the same result in more, smaller passes)"
        )
    if not recipe.train.gradient_checkpointing:
        cures.append("--set train.gradient_checkpointing=true")
    cures.append("a smaller encode.max_tokens")
    return DeviceError(
        f"out of memory with up to {tokens:,} tokens per forward pass",
        f"Try {', then '.join(cures)}.",
    )
