"""One part of a run, a fold or the holdout, from rows to a finished folder."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from accelerate import PartialState

import kit
from kit import frame
from kit.atomic import write_json
from kit.data.encode import Vocabulary, encode_cached
from kit.data.processed import Processed
from kit.data.tabular import tabulate
from kit.errors import DeviceError, RunError
from kit.model.device import choose, out_of_memory, prepare
from kit.model.inference import collator, predict_logits, probabilities, softmax
from kit.model.pair import PairModel
from kit.recipe import Recipe
from kit.rundir import RunDir, digests
from kit.schema import ID, LABEL
from kit.scoring.metrics import accuracy, log_loss, swap_gap
from kit.training import lora
from kit.training.callbacks import Progress, TimeBudget
from kit.training.disk import advice_on_disk
from kit.training.guard import CollapseGuard, constant_loss
from kit.training.start import new_model
from kit.training.tracking import tensorboard
from kit.training.trainer import make_trainer

CHECKPOINTS = "checkpoints"


def train_part(
    recipe: Recipe,
    data: Processed,
    run: RunDir,
    fold: int | str,
    *,
    resume: bool = False,
    guard: bool = True,
    tried: Sequence[dict[str, Any]] = (),
    report_to: str | None = None,
    deadline: float = math.inf,
    listen: Callable[[Progress], None] = lambda _: None,
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
        shutil.rmtree(part / CHECKPOINTS, ignore_errors=True)  # left by a process that was killed at its very end
        return run.parts()[part.name]
    checkpoints = part / CHECKPOINTS
    if checkpoints.exists() and not resume:
        raise RunError(
            f"{part}: an unfinished training is there",
            "Add --resume to go on with it, or delete the folder to start afresh.",
        )
    started = time.monotonic()
    compute = choose(recipe.train.precision)  # refuses a device before a model is fetched for it
    ranks = PartialState(cpu=compute.device.type == "cpu")
    transformers.set_seed(recipe.train.seed)
    with ranks.main_process_first():  # the others find its downloads and caches
        model, vocabulary = new_model(recipe, data)
        compute = choose(recipe.train.precision, model.width)
        say(compute.reason)
        rows, content = data.train(), data.digest("train")
        encoded = encode_cached(rows, content, vocabulary, recipe.encode, data.cache, recipe.model.shape)
        tabular = tabulate(rows, content, encoded, data.cache) if recipe.model.features else None
    cut = encoded.cut / (len(encoded) * encoded.sides)
    say(f"{len(encoded):,} rows encoded; {cut:.0%} of sequences cut to {recipe.encode.max_tokens} tokens")
    train_rows, valid_rows = data.fold_rows(fold)
    rows = data.train([ID, LABEL])
    labels, targets = rows[LABEL].to_numpy(), data.targets()
    if tabular is not None:
        model.fit_features(tabular, train_rows)
    prepare(compute)
    model.to(compute.device)  # before the collators look where it is
    collate = collator(model, encoded, vocabulary, labels, tabular=tabular)
    taught = collator(model, encoded, vocabulary, targets, tabular=tabular)
    both = recipe.predict.swap and not model.symmetric  # else one order says what both say
    trainer = make_trainer(
        recipe.train, model, taught, collate, train_rows, valid_rows, both, compute, checkpoints, listen
    )
    budget = TimeBudget(deadline, say)
    trainer.add_callback(budget)
    if guard:
        reference, settled = constant_loss(targets[train_rows], labels[valid_rows]), trainer.lr_scheduler.settled
        trainer.add_callback(CollapseGuard(reference, settled, recipe.train, say, lambda: budget.out_of_time))
    if report_to:
        trainer.add_callback(tensorboard(part / "tensorboard" / f"attempt{len(tried) + 1}"))
    with ranks.main_process_first():
        last = last_whole_checkpoint(checkpoints)
    if resume and last:
        say(f"going on from step {last.name.rpartition('-')[2]}")
    with _advice_on_memory(recipe, trainer.args.per_device_train_batch_size), advice_on_disk(part):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if recipe.train.lora_rank:
            lora.merge(model.encoder)
        logits = predict_logits(model, collate, valid_rows, compute, both_orders=recipe.predict.swap)
    each, state = probabilities(logits), trainer.state
    metrics = {
        "log_loss": log_loss(each, labels[valid_rows]),
        "accuracy": accuracy(each, labels[valid_rows]),
        "swap_gap": swap_gap(*softmax(logits).swapaxes(0, 1)) if recipe.predict.swap else None,
        "best_epoch": state.best_global_step / state.global_step * state.epoch,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "epochs": state.epoch,
        "train_rows": len(train_rows),
        "valid_rows": len(valid_rows),
        "cut_sides": cut,
        "padding_waste": trainer.padding_waste,
        "parameters": sum(p.numel() for p in model.parameters()),
        "skipped_steps": trainer.skipped_steps,
        "out_of_time": budget.out_of_time,
        "restarts": list(tried),
        **{name: getattr(recipe.train, name) for name in ("lr", "head_lr", "seed")},
        "minutes": (time.monotonic() - started) / 60,
        "device": compute.reason,
        "versions": {"kit": kit.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if ranks.is_main_process:
        ids = rows[ID].to_numpy()[valid_rows]
        _finish(part, model, vocabulary, frame.make(ids, each), state.log_history, metrics)
    ranks.wait_for_everyone()
    return metrics


def last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end: Trainer writes trainer_state.json last."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for folder in found:
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(folder)  # half written when the training was killed
            continue
        return folder
    return None


def _finish(
    part: Path,
    model: PairModel,
    vocabulary: Vocabulary,
    valid: pd.DataFrame,
    history: list[dict[str, float]],
    metrics: dict[str, Any],
) -> None:
    """Writes what a finished part holds, metrics.json last; the checkpoints are of no more use."""
    model.save_pretrained(part, vocabulary)
    frame.write(valid, part / "valid.csv")
    write_json(part / "trainer_state.json", {"log_history": [_tidy(entry) for entry in history]})
    write_json(part / "metrics.json", metrics | {"files": digests(part)})
    shutil.rmtree(part / CHECKPOINTS)


def _tidy(entry: dict[str, float]) -> dict[str, float | None]:
    """In the order that a checkpoint gives it; JSON has no word for the infinite gradient norm of a skipped step."""
    return {name: value if math.isfinite(value) else None for name, value in sorted(entry.items())}


@contextmanager
def _advice_on_memory(recipe: Recipe, rows: int) -> Iterator[None]:
    """Turns running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DeviceError(
            f"out of memory with {rows} rows of 2 x {recipe.encode.max_tokens} tokens per forward pass",
            f"Try --set train.micro_batch_size={max(1, rows // 2)} (the same result, more steps), then "
            "--set train.gradient_checkpointing=true, then a smaller encode.max_tokens.",
        ) from error
