"""A whole run: its folds one after another, within the time there is, and the out-of-fold predictions at the end."""

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState

import kit
from kit import frame
from kit.atomic import write_json
from kit.data.processed import Processed, open_processed
from kit.errors import RecipeError
from kit.recipe import Recipe
from kit.rundir import HOLDOUT, RunDir
from kit.schema import CLASSES, ID, LABEL
from kit.scoring.metrics import accuracy, log_loss
from kit.training.callbacks import Progress, agreed
from kit.training.part import train_part


def train(
    recipe: Recipe,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    *,
    resume: bool = False,
    max_hours: float = math.inf,
    listen: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains `recipe` on the processed rows in `data`, for one fold ("0", "1", …), "all" of them, or the "holdout".

    Finished parts are left alone, so "all" goes on where it stopped. When every fold is done the out-of-fold
    predictions of all rows are written to the run's oof.csv. After `max_hours` the part in hand ends with its best
    checkpoint; a fold that would not finish in the time that is left is not begun.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.
    """
    began = time.monotonic()
    deadline = began + max_hours * 3600
    processed = open_processed(data)
    folds = _folds(fold, processed.folds)
    origin = {"data": processed.digest("train"), "kit": kit.__version__} | {
        name: processed.manifest["options"][name] for name in ("text", "split", "folds")
    }
    ranks = PartialState(cpu=not torch.cuda.is_available())
    with ranks.main_process_first():
        run = RunDir.create(runs, recipe, origin)
    longest = 0.0
    for number, each in enumerate(folds):
        if not run.done(each) and agreed(time.monotonic() + longest > deadline):
            left = ", ".join(map(str, folds[number:]))
            say(f"no time for another fold; left: {left}. The same command goes on with them")
            break
        start = time.monotonic()
        train_part(recipe, processed, run, each, resume=resume, deadline=deadline, listen=listen, say=say)
        longest = max(longest, time.monotonic() - start)
        gc.collect()  # Trainer's model and optimizer hang in a reference cycle, and the next fold needs their memory
        torch.cuda.empty_cache()
    return _summarise(run, processed, write=ranks.is_main_process)


def _summarise(run: RunDir, processed: Processed, write: bool) -> dict[str, Any]:
    """The run's metrics over what is finished; with every fold done the out-of-fold predictions, too."""
    summary: dict[str, Any] = {"run": str(run.path), "parts": run.parts()}
    if all(run.done(fold) for fold in range(processed.folds)):
        oof = pd.concat([frame.read(run.part(fold) / "valid.csv") for fold in range(processed.folds)])
        rows = processed.train([ID, LABEL])
        truth = dict(zip(rows[ID].to_pylist(), rows[LABEL].to_pylist(), strict=True))
        labels, each = oof[ID].map(truth).to_numpy(), oof[list(CLASSES)].to_numpy()
        summary["oof"] = {"log_loss": log_loss(each, labels), "accuracy": accuracy(each, labels), "rows": len(oof)}
        if write:
            frame.write(oof, run.path / "oof.csv")
    if write:
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
