"""A whole run: its folds one after another, within the time there is, and the out-of-fold predictions at the end."""

import gc
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from kit.data.dataset import open_dataset
from kit.model.backbones import resolve_backbone
from kit.parts import choose_folds, run_origin, summarise_run
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.lock import hold_lock
from kit.task import HOLDOUT
from kit.training.arguments import rows_at_once
from kit.training.callbacks import TrainingProgress, decide_together
from kit.training.restart import train_again
from kit.training.start import check_trainable
from kit.training.tracking import require_tracker


def train_recipe(
    recipe: Recipe,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    *,
    resume: bool = False,
    guard: bool = True,
    restarts: int = 0,
    report_to: str | None = None,
    max_hours: float = math.inf,
    listen: Callable[[TrainingProgress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains `recipe` on the processed rows in `data`, for one fold ("0", "1", …), "all" of them, or the "holdout".

    Finished parts are left alone, so "all" goes on where it stopped. When every fold is done the out-of-fold
    predictions of all rows are written to the run's oof.csv. After `max_hours` the part in hand ends with its best
    checkpoint; a fold that would not finish in the time that is left is not begun. With `guard` a training that has
    learned nothing is an error; with `restarts` it is tried again that often, from fresh weights with half the rates
    and another seed. `report_to` "tensorboard" leaves curves in the parts' folders.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.
    """
    require_tracker(report_to)
    began = time.monotonic()
    deadline = began + max_hours * 3600
    processed = open_dataset(data)
    folds = choose_folds(fold, processed.folds)
    backbone = resolve_backbone(recipe.backbone)  # one that does not exist leaves no run behind
    known = backbone.record
    if known and known.multilingual and processed.manifest["options"]["text"] == "ascii":
        say(
            f"{known.name} reads a hundred languages, but these rows were stripped to ASCII; "
            "`kit preprocess --text unicode` keeps them"
        )
    check_trainable(recipe)
    ranks = PartialState(cpu=not torch.cuda.is_available())
    rows_at_once(recipe.train, ranks.num_processes)
    with ranks.main_process_first():
        run = Run.create(runs, recipe, run_origin(processed, backbone.digest))
    longest = 0.0
    for number, each in enumerate(folds):
        if not run.done(each) and decide_together(time.monotonic() + longest > deadline):
            left = ", ".join(map(str, folds[number:]))
            say(f"no time for another fold; left: {left}. The same command goes on with them")
            break
        start = time.monotonic()
        options = {"resume": resume, "guard": guard, "report_to": report_to, "deadline": deadline}
        with hold_lock(run.path, run.part(each).name) if ranks.is_main_process else nullcontext():
            train_again(recipe, processed, run, each, restarts, **options, listen=listen, say=say)
        longest = max(longest, time.monotonic() - start)
        gc.collect()  # Trainer's model and optimizer hang in a reference cycle, and the next fold needs their memory
        torch.cuda.empty_cache()
    return summarise_run(run, processed, write=ranks.is_main_process)
