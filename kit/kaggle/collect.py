"""Bring the folds that training kernels have finished into local run directories.

Use `collect_folds`; `fold_origins` says which kernel each fold of a run came from.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from kit.errors import RunError
from kit.fold_dir import FoldDir
from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.kernels import latest_version
from kit.kaggle.outputs import download_output
from kit.run import ORIGIN_FILE, Run
from kit.storage import atomic
from kit.storage.atomic import read_text_file
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
        RunError: a local run of that name has other data or another recipe, or what was downloaded
            is not whole.
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

    collected = sorted(path.parent for path in staging.rglob(ORIGIN_FILE))
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
    downloaded.check_files()
    home = runs / run.name
    fold_origins(home)  # a damaged record is an error before anything is moved

    # Kernels of several folds share one run directory and may be collected at the same time. The
    # lock "metrics" guards the files that belong to all folds, and is held for a moment only.
    with hold_lock(home, "metrics", wait=True):
        local = Run(home)
        if local.has_begun:
            Run.open(home).check_data(downloaded.option("data", str))
        else:
            downloaded.origin_path.replace(local.origin_path)
            if not local.baseline:
                downloaded.recipe_path.replace(local.recipe_path)

    moved: list[Path] = []
    try:
        for fold in downloaded.finished():
            if local.fold(fold.name).is_finished:
                continue
            # A local training of this fold holds the same lock.
            with hold_lock(home, fold.name):
                if _move_fold(fold, local.fold(fold.name)):
                    moved.append(local.fold(fold.name).path)
    finally:
        # Where one fold fails, those that were moved before it stay and are noted.
        if moved:
            with hold_lock(home, "metrics", wait=True):
                origins = fold_origins(home) | {fold.name: str(ref) for fold in moved}
                atomic.write_json(home / ORIGINS, origins)
            local.summarise()
    return moved


def _move_fold(fold: FoldDir, home: FoldDir) -> bool:
    """Move a finished fold to its place; return False where a finished one is there already."""
    if home.is_finished:
        return False
    if home.path.exists():
        raise RunError(
            f"{home.path} holds an unfinished training of this machine", "Finish it, or delete it."
        )
    fold.path.replace(home.path)
    return True


def fold_origins(run: str | Path) -> dict[str, str]:
    """Return the kernel, as owner/slug/version, that each collected fold of a run came from.

    Raises:
        RunError: the record is damaged.
    """
    path = Path(run) / ORIGINS
    if not path.is_file():
        return {}
    try:
        return {str(fold): str(ref) for fold, ref in json.loads(read_text_file(path)).items()}
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: cannot be read: {error}",
            "Delete it, and name the kernels in place of this folder where you push.",
        ) from error
