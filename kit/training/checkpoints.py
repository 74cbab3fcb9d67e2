"""Place checkpoints, find the one that a training continues from, and explain a full disk."""

import hashlib
import json
import math
import re
import shutil
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from kit.errors import KitError, RunError
from kit.fold_dir import PASSES_FILE
from kit.storage.atomic import disk_is_full, read_text_file, write_json
from kit.storage.contents import missing_bytes

CHECKPOINTS = "checkpoints"

_NAME = re.compile("checkpoint-[0-9]+")

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"


def require_no_checkpoints(fold: Path) -> None:
    """Raise RunError if the fold's folder holds an unfinished training."""
    if (fold / CHECKPOINTS).exists():
        raise RunError(
            f"{fold} holds an unfinished training",
            "Add --resume to continue it. To start again, delete the folder, or the whole run with "
            "`kit runs rm`.",
        )


def place_checkpoints(fold: Path, scratch: Path | None) -> Path:
    """Return the folder of a fold's checkpoints, and link it to `scratch` if that is given.

    The fold's folder then has a link, so that a later process finds the checkpoints whether or not
    it is given `scratch`. Existing checkpoints are not moved.
    """
    checkpoints = fold / CHECKPOINTS
    if checkpoints.is_symlink() and not checkpoints.exists():
        # The scratch disk of an earlier session is gone, and the checkpoints with it.
        checkpoints.unlink()
    if scratch is None or checkpoints.exists():
        return checkpoints

    # Two folders of runs may have runs of the same name.
    place = hashlib.sha256(str(fold.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    target = scratch.absolute() / f"{fold.parent.name}-{fold.name}-{place}"
    target.mkdir(parents=True, exist_ok=True)
    fold.mkdir(parents=True, exist_ok=True)
    checkpoints.symlink_to(target, target_is_directory=True)
    return checkpoints


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove a folder of checkpoints, or the link to it and what it leads to."""
    if checkpoints.is_symlink():
        shutil.rmtree(checkpoints.resolve(), ignore_errors=True)
        checkpoints.unlink(missing_ok=True)
    else:
        shutil.rmtree(checkpoints, ignore_errors=True)


def checkpoint_files(precision: str, processes: int) -> list[str]:
    """Return the files of a checkpoint that Trainer needs to continue as if nothing had happened.

    Without some of them it would continue silently with a new optimizer or other random numbers.
    """
    rng = ["rng_state.pth"]
    if processes > 1:
        rng = [f"rng_state_{rank}.pth" for rank in range(processes)]
    scaler = ["scaler.pt"] if precision == "fp16" else []
    return [WEIGHTS, "optimizer.pt", "scheduler.pt", *scaler, *rng]


def last_checkpoint(
    checkpoints: Path,
    below: float = math.inf,
    files: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> Path | None:
    """Return the newest checkpoint that is whole, removing those after it.

    Args:
        below: remove checkpoints of this step and later.
        files: what a whole checkpoint holds (see `checkpoint_files`).
        log: receives a line for each checkpoint that is not whole.
    """
    # A person may have put a copy beside them, such as checkpoint-400-best.
    found = [path for path in checkpoints.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    folders = sorted(found, key=checkpoint_step, reverse=True)
    for folder in folders:
        if checkpoint_step(folder) >= below:
            shutil.rmtree(folder)
            continue

        problem = _checkpoint_problem(folder, files)
        if problem:
            log(f"{folder}: {problem}; this checkpoint is passed over")
            shutil.rmtree(folder)
            continue

        # From the checkpoint at which early stopping ended the training, Trainer would continue.
        # From the one before it, the training stops here again.
        if folder != folders[-1] and _patience_is_used_up(_read_state(folder)):
            shutil.rmtree(folder)
            continue
        return folder

    if folders:
        log(f"{checkpoints}: no checkpoint to continue from; the training starts again")
    return None


def _checkpoint_problem(folder: Path, files: Sequence[str]) -> str:
    """Return what keeps a training from continuing here, "" if nothing does."""
    # Trainer writes its state last: without it the training was killed while it saved.
    try:
        state = _read_state(folder)
    except (OSError, ValueError):
        return f"{STATE} is missing or damaged"

    for name in files:
        problem = _file_problem(folder / name)
        # Other processes than before draw other random numbers anyway.
        if problem and not (name.startswith("rng_state") and _has_other_processes(folder, files)):
            return problem

    # At its end Trainer loads the best weights, and without their file keeps the last ones.
    best = _best_checkpoint(folder, state)
    if files and best != folder:
        weights = [name for name in files if name.endswith(Path(WEIGHTS).suffix)]
        problems = [_file_problem(best / name) for name in weights]
        return next((f"{best.name}, the best so far: {text}" for text in problems if text), "")
    return ""


def _read_state(folder: Path) -> dict[str, Any]:
    """Return what Trainer wrote of itself; raise OSError or ValueError if it cannot be read."""
    state = json.loads(read_text_file(folder / STATE))
    if not isinstance(state, dict):
        raise ValueError("not a JSON object")
    return state


def _best_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Return the checkpoint with the best weights until this one, next to it or itself."""
    # A run may have been moved since the path was written, so only its step counts.
    best = state.get("best_global_step")
    return folder.with_name(f"checkpoint-{best}") if best else folder


def _has_other_processes(folder: Path, files: Sequence[str]) -> bool:
    """Tell whether the checkpoint has random states of another number of processes."""
    return any(path.name not in files for path in folder.glob("rng_state*.pth"))


def _file_problem(path: Path) -> str:
    """Return what is wrong with a file of a checkpoint, "" if it is whole."""
    if not path.is_file():
        return f"{path.name} is missing"
    whole = zipfile.is_zipfile(path)
    if path.suffix == Path(WEIGHTS).suffix:
        whole = missing_bytes(path) == 0
    return "" if whole else f"{path.name} is incomplete"


def read_pass_tokens(checkpoints: Path) -> int | None:
    """Return the most tokens of this training's passes, 0 for no limit; None if it never began."""
    try:
        return int(json.loads(read_text_file(checkpoints / PASSES_FILE))["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_pass_tokens(checkpoints: Path, tokens: int) -> None:
    """Write the most tokens of this training's passes."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(checkpoints / PASSES_FILE, {"tokens": tokens})


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def explain_full_disk(fold: Path) -> Generator[None]:
    """Turn a checkpoint that does not fit on the disk into one message, whichever library wrote it.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except KitError:
        raise
    # torch, safetensors and the operating system each raise exceptions of their own.
    except Exception as error:
        if not disk_is_full(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{fold}: a checkpoint cannot be written: {reason}",
            "Free some space (two checkpoints are kept, each of the model and its optimizer), then "
            "add --resume.",
        ) from error


def _patience_is_used_up(state: dict[str, Any]) -> bool:
    """Tell whether early stopping ended the training at this checkpoint."""
    saved = state.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
    if not saved:
        return False
    waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return waited >= saved["args"]["early_stopping_patience"]
