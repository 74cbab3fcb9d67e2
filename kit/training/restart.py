"""Another try for a training that collapsed: fresh weights, half the rates, a new seed, and a record."""

import dataclasses
import gc
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from kit.data.dataset import Dataset
from kit.errors import CollapseError
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.atomic import write_json
from kit.training.callbacks import decide_together
from kit.training.checkpoints import CHECKPOINTS
from kit.training.fold import train_fold

TRIED = "tried.json"  # in an unfinished part; a finished one has it in its metrics
ASIDE = f"{CHECKPOINTS}-of-"
SEEDS_APART = 1000  # so that no attempt has the seed of another run of the same recipe


def train_again(
    recipe: Recipe, data: Dataset, run: Run, fold: int | str, restarts: int, **options: Any
) -> dict[str, Any]:
    """`train_part`, and again up to `restarts` times in all where it collapses or diverges.

    What was tried stands in the part's tried.json, so a resumed part goes on with the attempt that was under way.

    Raises:
        CollapseError: the last attempt, too, came to nothing; its checkpoints are still there.
    """
    part, say = run.part(fold), options.get("say", lambda _: None)
    _sweep(part)
    tried = _read(part / TRIED)
    while True:
        now = attempt(recipe, len(tried))
        try:
            metrics = train_fold(now, data, run, fold, tried=tried, **options)
            break
        except CollapseError as error:
            late = time.monotonic() > options.get("deadline", math.inf)
            if decide_together(len(tried) >= restarts or late):
                raise
            tried = [*tried, rates(now) | {"why": error.problem}]
        gc.collect()  # the model that failed hangs in a reference cycle
        torch.cuda.empty_cache()
        say(
            f"{tried[-1]['why']}; attempt {len(tried) + 1} with {_words(rates(attempt(recipe, len(tried))))}"
        )
        _begin_again(part, tried)
    (part / TRIED).unlink(missing_ok=True)
    return metrics


def attempt(recipe: Recipe, number: int) -> Recipe:
    """The recipe of attempt `number`, from 0: rates halved that many times, and a seed of its own."""
    train = recipe.train
    half = 0.5**number
    seed = (train.seed + SEEDS_APART * number) % 2**32
    return dataclasses.replace(
        recipe,
        train=dataclasses.replace(
            train, lr=train.lr * half, head_lr=train.head_lr * half, seed=seed
        ),
    )


def rates(recipe: Recipe) -> dict[str, Any]:
    """What attempts differ in."""
    return {"lr": recipe.train.lr, "head_lr": recipe.train.head_lr, "seed": recipe.train.seed}


def _begin_again(part: Path, tried: list[dict[str, Any]]) -> None:
    """Records what was tried and removes its checkpoints: first out of the way, for a kill may come at any time."""
    ranks = PartialState()
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        (part / CHECKPOINTS).rename(part / f"{ASIDE}{len(tried)}")
        write_json(part / TRIED, tried)
        _sweep(part)
    ranks.wait_for_everyone()


def _sweep(part: Path) -> None:
    """Removes the checkpoints of attempts before; those that a killed process had put aside, too."""
    if PartialState().is_main_process:
        for aside in part.glob(f"{ASIDE}*"):
            shutil.rmtree(aside, ignore_errors=True)


def _words(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )


def _read(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
