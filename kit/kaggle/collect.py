"""Bring the folds that training kernels have finished into local run directories.

Use `collect_folds`; `fold_origins` says which kernel each fold of a run came from.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from kit.errors import RunError
from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.kernels import latest_version
from kit.kaggle.outputs import download_output
from kit.predictions import read_predictions, write_predictions
from kit.run import Run
from kit.storage import atomic
from kit.storage.lock import hold_lock

ORIGINS = "kernels.json"  # in a run directory: the kernel that each of its folds came from


def collect_folds(
    client: Client, ref: KernelRef, runs: str | Path, *, say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Download the run directories in a kernel's output into `runs`; return the folds that are new.

    Args:
        ref: without a version, the latest at this moment; its number is noted with the folds.

    Raises:
        KaggleError: the output cannot be downloaded whole, or contains no run.
        RunError: a local run of that name has other data or another recipe.
        HeldError: another process collects this kernel, or trains a fold that is in its output.
    """
    runs = Path(runs)
    ref = latest_version(client, ref)
    runs.mkdir(parents=True, exist_ok=True)
    with hold_lock(runs, f"{ref.slug}.collect"):
        return _collect(client, ref, runs, say)


def _collect(client: Client, ref: KernelRef, runs: Path, say: Callable[[str], None]) -> list[Path]:
    # The download is staged inside `runs`, so that folds move to their place by a rename.
    staging = runs / f".{ref.slug}.output"
    shutil.rmtree(staging, ignore_errors=True)
    download_output(client, ref, staging, say=say)

    collected = sorted(path.parent for path in staging.rglob("recipe.toml"))
    if not collected:
        shutil.rmtree(staging)
        raise KaggleError(
            f"the output of {ref} holds no run directory",
            f"Run `kit kernels logs {ref}` to see why.",
        )
    folds = [fold for run in collected for fold in _merge_run(run, runs, ref)]
    shutil.rmtree(staging)
    return folds


def _merge_run(run: Path, runs: Path, ref: KernelRef) -> list[Path]:
    """Move the finished folds of `run` that are new into `runs`, noting their kernel."""
    downloaded = Run.open(run)
    home = runs / run.name

    # Kernels of several folds share one run directory and may be collected at the same time. The
    # lock "metrics" guards the files that belong to all folds, and is held for a moment only.
    with hold_lock(home, "metrics", wait=True):
        if (home / "recipe.toml").exists():
            Run.open(home).check_data(downloaded.noted("data", str))
        else:
            (run / "origin.json").replace(home / "origin.json")
            (run / "recipe.toml").replace(home / "recipe.toml")

    moved: list[Path] = []
    try:
        for name in downloaded.parts():
            if (home / name / "metrics.json").exists():
                continue
            # A local training of this fold holds the same lock.
            with hold_lock(home, name):
                if _move_fold(run / name, home / name):
                    moved.append(home / name)
    finally:
        # Where one fold fails, those that were moved before it stay and are noted.
        if moved:
            with hold_lock(home, "metrics", wait=True):
                origins = fold_origins(home) | {fold.name: str(ref) for fold in moved}
                atomic.write_json(home / ORIGINS, origins)
                _summarise(Run(home))
    return moved


def _move_fold(fold: Path, home: Path) -> bool:
    """Move a finished fold to its place; return False where a finished one is there already."""
    if (home / "metrics.json").exists():
        return False
    if home.exists():
        raise RunError(
            f"{home} holds an unfinished training of this machine", "Finish it, or delete it."
        )
    fold.replace(home)
    return True


def _summarise(run: Run) -> None:
    """Write the run's metrics.json, and with all folds its oof.csv, as `kit train` does.

    The log loss and accuracy of all rows are the means of the folds', weighted by their rows.
    """
    parts = run.parts()
    summary: dict[str, Any] = {"run": str(run.path), "parts": parts}
    folds = [f"fold{k}" for k in range(run.noted("folds", int))]
    if set(folds) <= set(parts):
        rows = [parts[fold]["valid_rows"] for fold in folds]
        means = {
            name: sum(parts[fold][name] * n for fold, n in zip(folds, rows, strict=True))
            / sum(rows)
            for name in ("log_loss", "accuracy")
        }
        summary["oof"] = {**means, "rows": sum(rows)}
        predictions = [read_predictions(run.path / fold / "valid.csv") for fold in folds]
        write_predictions(pd.concat(predictions), run.path / "oof.csv")
    atomic.write_json(run.path / "metrics.json", summary)


def fold_origins(run: str | Path) -> dict[str, str]:
    """Return the kernel, as owner/slug/version, that each collected fold of a run came from."""
    path = Path(run) / ORIGINS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
