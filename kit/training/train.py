"""One part of a run, from rows to a finished folder: the one place that builds TrainingArguments."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

import kit
from kit import frame
from kit.atomic import write_json
from kit.data.encode import Vocabulary, encode_cached
from kit.data.processed import Processed, open_processed
from kit.errors import DeviceError, RecipeError, RunError
from kit.model.batches import Padding
from kit.model.device import choose
from kit.model.inference import collator, predict_logits, probabilities
from kit.model.pair import PairModel
from kit.recipe import Recipe
from kit.rundir import HOLDOUT, RunDir
from kit.schema import CLASSES, ID, LABEL
from kit.scoring.metrics import accuracy, log_loss
from kit.training.callbacks import Progress
from kit.training.start import new_model
from kit.training.trainer import make_trainer

CHECKPOINTS = "checkpoints"


def train(
    recipe: Recipe,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    *,
    resume: bool = False,
    listen: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains `recipe` on the processed rows in `data`, for one fold ("0", "1", …), "all" of them, or the "holdout".

    Finished parts are left alone, so "all" goes on where it stopped. When every fold is done the out-of-fold
    predictions of all rows are written to the run's oof.csv.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.
    """
    processed = open_processed(data)
    origin = {"data": processed.digest("train"), "kit": kit.__version__} | {
        name: processed.manifest["options"][name] for name in ("text", "split", "folds")
    }
    folds = _folds(fold, processed.folds)
    run = RunDir.create(runs, recipe, origin)
    for each in folds:
        train_part(recipe, processed, run, each, resume=resume, listen=listen, say=say)
    summary: dict[str, Any] = {"run": str(run.path), "parts": run.parts()}
    if all(run.done(each) for each in range(processed.folds)):
        oof = pd.concat([frame.read(run.part(each) / "valid.csv") for each in range(processed.folds)])
        truth = dict(zip(processed.train()[ID].to_pylist(), processed.train()[LABEL].to_pylist(), strict=True))
        labels = oof[ID].map(truth).to_numpy()
        each = oof[list(CLASSES)].to_numpy()
        summary["oof"] = {"log_loss": log_loss(each, labels), "accuracy": accuracy(each, labels), "rows": len(oof)}
        frame.write(oof, run.path / "oof.csv")
    write_json(run.path / "metrics.json", summary)
    return summary


def _folds(fold: str, folds: int) -> list[int | str]:
    if fold == HOLDOUT:
        return [HOLDOUT]
    if fold == "all":
        return list(range(folds))
    if fold.isdecimal() and int(fold) < folds:
        return [int(fold)]
    raise RecipeError(f"--fold {fold!r}: these rows have folds 0 to {folds - 1}", "Name one, or `all`, or `holdout`.")


def train_part(
    recipe: Recipe,
    data: Processed,
    run: RunDir,
    fold: int | str,
    *,
    resume: bool = False,
    listen: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains `recipe` on everything but `fold` (a number or "holdout") and returns what metrics.json holds.

    A part that is done is left alone. An interrupted one goes on from its last whole checkpoint with `resume`, and
    ends with the same weights as if it had not been interrupted.

    Raises:
        RunError: an interrupted training is there and `resume` was not asked for.
        RecipeError: the recipe does not fit the backbone or the devices.
        DeviceError: the device cannot run this, or its memory is too small.
    """
    part = run.part(fold)
    if run.done(fold):
        say(f"{part} is done already")
        return run.parts()[part.name]
    checkpoints = part / CHECKPOINTS
    if checkpoints.exists() and not resume:
        raise RunError(
            f"{part}: an unfinished training is there",
            "Add --resume to go on with it, or delete the folder to start afresh.",
        )
    started = time.monotonic()
    compute = choose(recipe.train.precision)
    say(compute.reason)
    transformers.set_seed(recipe.train.seed)
    model, vocabulary = new_model(recipe, data)
    table = data.train()
    encoded = encode_cached(table, data.digest("train"), vocabulary, recipe.encode, data.cache)
    cut = encoded.cut / (len(encoded) * encoded.sides)
    say(f"{len(encoded):,} rows encoded; {cut:.0%} of sides cut to {recipe.encode.max_tokens} tokens")
    train_rows, valid_rows = data.fold_rows(fold)
    padding = Padding()
    labels = table[LABEL].to_numpy()
    model.to(compute.device)  # before the collator looks where it is
    collate = collator(model, encoded, vocabulary, labels, padding)
    trainer = make_trainer(recipe.train, model, collate, train_rows, valid_rows, compute, checkpoints, listen)
    last = last_whole_checkpoint(checkpoints)
    if resume and last:
        say(f"going on from step {last.name.rpartition('-')[2]}")
    with _advice_on_memory(recipe):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        logits = predict_logits(model, collate, valid_rows, compute, both_orders=recipe.predict.swap)
    each, state = probabilities(logits), trainer.state
    metrics = {
        "log_loss": log_loss(each, labels[valid_rows]),
        "accuracy": accuracy(each, labels[valid_rows]),
        "best_epoch": state.best_global_step / state.global_step * state.epoch,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "epochs": state.epoch,
        "train_rows": len(train_rows),
        "valid_rows": len(valid_rows),
        "cut_sides": cut,
        "padding_waste": padding.waste,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": (time.monotonic() - started) / 60,
        "device": compute.reason,
        "versions": {"kit": kit.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if trainer.is_world_process_zero():
        ids = table[ID].to_numpy()[valid_rows]
        _finish(part, model, vocabulary, frame.make(ids, each), state.log_history, metrics)
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
    write_json(part / "trainer_state.json", {"log_history": history})
    write_json(part / "metrics.json", metrics)
    shutil.rmtree(part / CHECKPOINTS)


@contextmanager
def _advice_on_memory(recipe: Recipe) -> Iterator[None]:
    """Turns running out of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if (
            not isinstance(error, torch.OutOfMemoryError | MemoryError)
            and "alloc" not in words
            and "memory" not in words
        ):
            raise
        rows = recipe.train.micro_batch_size or recipe.train.batch_size
        raise DeviceError(
            f"out of memory with {rows} rows of 2 x {recipe.encode.max_tokens} tokens per forward pass",
            f"Try --set train.micro_batch_size={max(1, rows // 2)} (the same result, more steps), then "
            "--set train.gradient_checkpointing=true, then a smaller encode.max_tokens.",
        ) from error
