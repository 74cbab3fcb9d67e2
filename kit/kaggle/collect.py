"""What training kernels have left on Kaggle, brought into the local run directories."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kit.errors import RunError
from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError
from kit.kaggle.kernels import KernelRef, look_up_kernel
from kit.kaggle.outputs import download_output
from kit.predictions import read_predictions, write_predictions
from kit.run import Run
from kit.storage import atomic
from kit.storage.lock import hold_lock

ORIGINS = "kernels.json"  # in a run directory: which kernel each of its parts is from


def collect_folds(
    client: Client, ref: KernelRef, runs: str | Path, *, say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Brings the run directories in a training kernel's output into `runs`; the parts that are new there.

    Args:
        ref: without a version it is the latest at this moment, whose number is kept with the parts.

    Raises:
        KaggleError: the output cannot be had whole, or holds no run.
        RunError: a local run of that name is of other data or another recipe.
        HeldError: another process brings this kernel home, or is training a part that it would bring.
    """
    runs = Path(runs)
    ref = ref if ref.version else replace(ref, version=look_up_kernel(client, ref).latest or None)
    runs.mkdir(parents=True, exist_ok=True)
    with hold_lock(runs, f"{ref.slug}.collect"):
        return _collect(client, ref, runs, say)


def _collect(client: Client, ref: KernelRef, runs: Path, say: Callable[[str], None]) -> list[Path]:
    staging = runs / f".{ref.slug}.output"
    shutil.rmtree(staging, ignore_errors=True)
    download_output(client, ref, staging, say=say)
    found = sorted(p.parent for p in staging.rglob("recipe.toml"))
    if not found:
        shutil.rmtree(staging)
        raise KaggleError(
            f"the output of {ref} holds no run directory", f"`kit kernels logs {ref}` shows why."
        )
    parts = [part for run in found for part in _merge(run, runs, ref)]
    shutil.rmtree(staging)
    return parts


def _merge(run: Path, runs: Path, ref: KernelRef) -> list[Path]:
    """Moves a run, or those of its finished parts that are new, to `runs`, noting the kernel that they are from."""
    new, home = Run.open(run), runs / run.name
    with hold_lock(
        home, "metrics", wait=True
    ):  # what one of several processes writes for all, in a moment
        if not (home / "recipe.toml").exists():
            (run / "origin.json").replace(home / "origin.json")
            (run / "recipe.toml").replace(home / "recipe.toml")
        else:
            Run.open(home).check_data(new.noted("data", str))
    moved = []
    try:
        for name in new.parts():
            if (home / name / "metrics.json").exists():
                continue  # it is there already
            with hold_lock(home, name):  # as a training of this part has it
                if _take(run / name, home / name):
                    moved.append(home / name)
    finally:  # what came stays, whatever became of the others
        if moved:
            with hold_lock(home, "metrics", wait=True):
                atomic.write_json(
                    home / ORIGINS, fold_origins(home) | {part.name: str(ref) for part in moved}
                )
                _summarise(Run(home))
    return moved


def _take(part: Path, home: Path) -> bool:
    """Moves a finished part to its place, unless it is there already."""
    if (home / "metrics.json").exists():
        return False
    if home.exists():
        raise RunError(
            f"{home}: an unfinished training of this machine is there", "Delete it or finish it."
        )
    part.replace(home)
    return True


def _summarise(run: Run) -> None:
    """Writes the run's metrics.json, and with all folds its oof.csv, as `kit train` would have.

    A log loss or accuracy over all rows is the mean of the folds' own, weighted by their rows.
    """
    parts = run.parts()
    summary: dict[str, Any] = {"run": str(run.path), "parts": parts}
    folds = [f"fold{k}" for k in range(run.noted("folds", int))]
    if set(folds) <= set(parts):
        rows = [parts[fold]["valid_rows"] for fold in folds]
        each = {
            name: sum(parts[fold][name] * n for fold, n in zip(folds, rows, strict=True))
            / sum(rows)
            for name in ("log_loss", "accuracy")
        }
        summary["oof"] = {**each, "rows": sum(rows)}
        write_predictions(
            pd.concat([read_predictions(run.path / fold / "valid.csv") for fold in folds]),
            run.path / "oof.csv",
        )
    atomic.write_json(run.path / "metrics.json", summary)


def fold_origins(run: str | Path) -> dict[str, str]:
    """The kernel that each part of a local run was brought home from, as owner/slug/version, by the part's name."""
    path = Path(run) / ORIGINS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
