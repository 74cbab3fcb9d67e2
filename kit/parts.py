"""The parts of a run, for networks and baselines alike: which folds are meant, and what the finished ones amount to."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd

import kit
from kit.data.dataset import Dataset
from kit.errors import RecipeError, RunError
from kit.evaluation.metrics import accuracy, log_loss
from kit.predictions import read_predictions, write_predictions
from kit.run import Run
from kit.storage.atomic import write_json
from kit.storage.lock import hold_lock
from kit.task import CLASSES, HOLDOUT, ID, LABEL


def run_origin(processed: Dataset, backbone: str | None = None) -> dict[str, Any]:
    """What a run remembers of the data it is made from, of its backbone's folder, and of the kit that made it."""
    options = {
        name: processed.manifest["options"][name]
        for name in ("text", "split", "folds", "valid", "seed")
    }
    folder = {"backbone": backbone} if backbone else {}
    return {"data": processed.digest("train"), "kit": kit.__version__} | options | folder


def choose_folds(fold: str, folds: int) -> list[int | str]:
    """The parts that `--fold` asks for: "holdout", a number, or "all" of them.

    Raises:
        RecipeError: no such fold; the message lists them.
    """
    if fold == HOLDOUT:
        return [HOLDOUT]
    if fold == "all":
        return list(range(folds))
    if fold.isdecimal() and int(fold) < folds:
        return [int(fold)]
    raise RecipeError(
        f"--fold {fold!r}: these rows have folds 0 to {folds - 1}",
        "Name one, or `all`, or `holdout`.",
    )


def summarise_run(run: Run, processed: Dataset, write: bool = True) -> dict[str, Any]:
    """The run's metrics over its finished parts, and once every fold is done over all rows out of fold.

    Args:
        write: leave metrics.json and oof.csv in the run, as the first of several processes does.

    Returns:
        `run` (its folder), `parts` (their metrics), and `oof` (log_loss, accuracy, rows) once every fold is done.
    """
    with (
        hold_lock(run.path, "metrics", wait=True) if write else nullcontext()
    ):  # folds may be trained side by side
        return _summarise(run, processed, write)


def _summarise(run: Run, processed: Dataset, write: bool) -> dict[str, Any]:
    summary: dict[str, Any] = {"run": str(run.path), "parts": run.parts()}
    if all(run.done(fold) for fold in range(processed.folds)):
        oof = pd.concat([_valid(run, processed, fold) for fold in range(processed.folds)])
        truth = processed.train([ID, LABEL]).to_pandas().set_index(ID)[LABEL]
        labels, each = truth[oof[ID]].to_numpy(np.int64), oof[list(CLASSES)].to_numpy()
        summary["oof"] = {
            "log_loss": log_loss(each, labels),
            "accuracy": accuracy(each, labels),
            "rows": len(oof),
        }
        if write:
            write_predictions(oof, run.path / "oof.csv")
    if write:
        write_json(run.path / "metrics.json", summary)
    return summary


def _valid(run: Run, processed: Dataset, fold: int) -> pd.DataFrame:
    """A fold's predictions of the rows that it did not train on.

    Raises:
        RunError: they are of other rows, as those of another split are.
    """
    path = run.part(fold) / "valid.csv"
    found = read_predictions(path)
    ids = processed.train([ID])[ID].to_numpy()[processed.fold_rows(fold)[1]]
    if not np.array_equal(np.sort(found[ID].to_numpy()), np.sort(ids)):
        raise RunError(
            f"{path}: its ids are not those of fold {fold} in {processed.folder}: it is of another split or other data",
            f"Delete {path.parent} and train that fold again.",
        )
    return found
