"""One part of a run, a fold or the holdout, from rows to a finished folder."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import PartialState

import kit
from kit.data.dataset import Dataset
from kit.data.tokenize import PairTokenizer
from kit.errors import DeviceError, RecipeError
from kit.evaluation.metrics import accuracy, log_loss, swap_gap
from kit.model.device import out_of_memory
from kit.model.inference import logits_to_probabilities, predict_logits, softmax_logits
from kit.model.pair_model import PairModel
from kit.predictions import make_predictions, write_predictions
from kit.recipe.spec import Recipe
from kit.run import Run, model_digests
from kit.storage.atomic import write_json
from kit.training.arguments import steps_per_epoch
from kit.training.callbacks import TimeBudget, TrainingProgress
from kit.training.checkpoints import (
    CHECKPOINTS,
    checkpoint_step,
    last_whole_checkpoint,
    require_no_checkpoints,
)
from kit.training.disk import advice_on_disk
from kit.training.guard import CollapseGuard, constant_loss
from kit.training.lora import merge_adapters
from kit.training.setup import FoldSetup, prepare_fold
from kit.training.tracking import tensorboard_callback
from kit.training.trainer import PairTrainer, make_trainer


def train_fold(
    recipe: Recipe,
    data: Dataset,
    run: Run,
    fold: int | str,
    *,
    resume: bool = False,
    guard: bool = True,
    tried: Sequence[dict[str, Any]] = (),
    report_to: str | None = None,
    deadline: float = math.inf,
    listen: Callable[[TrainingProgress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains `recipe` on everything but `fold` (a number or "holdout") and returns what metrics.json holds.

    A part that is done is left alone. An interrupted one goes on from its last whole checkpoint with `resume`, and
    ends with the same weights as if it had not been interrupted. At the `deadline` (of `time.monotonic`) training
    ends early, with the best checkpoint so far. Under torchrun every process calls this.

    Args:
        guard: end a training that has learned nothing.
        tried: attempts before this one that came to nothing, for the record.
        report_to: "tensorboard" for curves in the part's folder of that name.

    Raises:
        RunError: an interrupted training is there and `resume` was not asked for.
        RecipeError: the recipe does not fit the backbone or the devices.
        DeviceError: the device cannot run this, or its memory is too small.
        CollapseError: the training has learned nothing, or its numbers are not finite.
    """
    part = run.part(fold)
    if run.done(fold):
        say(f"{part} is done already")
        shutil.rmtree(
            part / CHECKPOINTS, ignore_errors=True
        )  # left by a process that was killed at its very end
        return run.parts()[part.name]
    if not resume:
        require_no_checkpoints(part)
    started = time.monotonic()
    material = prepare_fold(recipe, data, fold, say)
    ranks, model, compute, budget = (
        PartialState(),
        material.model,
        material.compute,
        TimeBudget(deadline, say),
    )
    trainer = _trainer(recipe, material, part / CHECKPOINTS, budget, guard, listen, say)
    if report_to:
        trainer.add_callback(
            tensorboard_callback(part / "tensorboard" / f"attempt{len(tried) + 1}")
        )
    with ranks.main_process_first():
        # from the last step of all in the middle of an epoch Trainer would take one more
        per_epoch, steps = (
            steps_per_epoch(recipe.train, len(material.train_rows)),
            trainer.args.max_steps,
        )
        last = last_whole_checkpoint(
            part / CHECKPOINTS, below=steps if steps % per_epoch else math.inf
        )
    if resume and last:
        say(f"going on from step {checkpoint_step(last)}")
    rows, sequences = trainer.args.per_device_train_batch_size, material.lessons.lengths.shape[1]
    with _advice_on_memory(recipe, rows, sequences), advice_on_disk(part):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if recipe.train.lora_rank:
            merge_adapters(model.encoder)
        both = recipe.predict.swap
        logits = predict_logits(
            model, material.questions, material.valid_rows, compute, both_orders=both
        )
    metrics = _judged(logits, material) | _trained(recipe, material, trainer)
    metrics |= {
        "out_of_time": budget.out_of_time,
        "restarts": list(tried),
        "minutes": (time.monotonic() - started) / 60,
        "versions": {
            "kit": kit.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if ranks.is_main_process:
        valid = make_predictions(material.ids[material.valid_rows], logits_to_probabilities(logits))
        _finish(part, model, material.vocabulary, valid, trainer.state.log_history, metrics)
    ranks.wait_for_everyone()
    return metrics


def _trainer(
    recipe: Recipe,
    material: FoldSetup,
    checkpoints: Path,
    budget: TimeBudget,
    guard: bool,
    listen: Callable[[TrainingProgress], None],
    say: Callable[[str], None],
) -> PairTrainer:
    """The trainer with what may end it early: the time budget, and with `guard` a training that learns nothing."""
    train_rows, valid_rows, model = material.train_rows, material.valid_rows, material.model
    both = recipe.predict.swap and not model.symmetric  # else one order says what both say
    batches = (material.lessons, material.questions, train_rows, valid_rows)
    trainer = make_trainer(
        recipe.train, model, *batches, both, material.compute, checkpoints, listen
    )
    trainer.add_callback(budget)
    if guard:
        reference = constant_loss(material.targets[train_rows], material.labels[valid_rows])
        settled = trainer.lr_scheduler.settled
        trainer.add_callback(
            CollapseGuard(reference, settled, recipe.train, say, lambda: budget.out_of_time)
        )
    return trainer


def _judged(logits: np.ndarray, material: FoldSetup) -> dict[str, Any]:
    """What the logits of the validation rows, (V, 3) or of both orders (V, 2, 3), are worth."""
    each, labels = logits_to_probabilities(logits), material.labels[material.valid_rows]
    return {
        "log_loss": log_loss(each, labels),
        "accuracy": accuracy(each, labels),
        "swap_gap": swap_gap(*softmax_logits(logits).swapaxes(0, 1)) if logits.ndim == 3 else None,
    }


def _trained(recipe: Recipe, material: FoldSetup, trainer: PairTrainer) -> dict[str, Any]:
    """How far the training came, on what, and at which rates."""
    state = trainer.state
    return {
        "best_epoch": state.best_global_step / state.global_step * state.epoch,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "epochs": state.epoch,
        "train_rows": len(material.train_rows),
        "valid_rows": len(material.valid_rows),
        "cut_sides": material.cut,
        "padding_waste": trainer.padding_waste,
        "parameters": sum(p.numel() for p in material.model.parameters()),
        "skipped_steps": trainer.skipped_steps,
        **{name: getattr(recipe.train, name) for name in ("lr", "head_lr", "seed")},
        "device": material.compute.reason,
    }


def _finish(
    part: Path,
    model: PairModel,
    vocabulary: PairTokenizer,
    valid: pd.DataFrame,
    history: list[dict[str, float]],
    metrics: dict[str, Any],
) -> None:
    """Writes what a finished part holds, metrics.json last; the checkpoints are of no more use."""
    model.save_pretrained(part, vocabulary)
    write_predictions(valid, part / "valid.csv")
    write_json(part / "trainer_state.json", {"log_history": [_tidy(entry) for entry in history]})
    write_json(part / "metrics.json", metrics | {"files": model_digests(part)})
    shutil.rmtree(part / CHECKPOINTS)


def _tidy(entry: dict[str, float]) -> dict[str, float | None]:
    """In the order that a checkpoint gives it; JSON has no word for the infinite gradient norm of a skipped step."""
    return {name: value if math.isfinite(value) else None for name, value in sorted(entry.items())}


@contextmanager
def _advice_on_memory(recipe: Recipe, rows: int, sequences: int) -> Iterator[None]:
    """Turns running out of memory into advice, for passes of so many rows with so many sequences each."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if recipe.train.compile and type(error).__module__.startswith(
            ("torch._dynamo", "torch._inductor")
        ):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise RecipeError(
                f"torch.compile failed on this encoder: {reason}", "Set train.compile=false."
            ) from error
        if not out_of_memory(error):
            raise
        row = sequences * recipe.encode.max_tokens
        tokens = max(row, min(recipe.train.micro_tokens or math.inf, rows * row))
        cures = {
            f"--set train.micro_tokens={max(row, tokens // 2)} (the same result in more, smaller passes)": tokens
            > row,
            "--set train.gradient_checkpointing=true": not recipe.train.gradient_checkpointing,
            "a smaller encode.max_tokens": True,
        }
        raise DeviceError(
            f"out of memory with up to {tokens:,} tokens per forward pass",
            f"Try {', then '.join(cure for cure, left in cures.items() if left)}.",
        ) from error
