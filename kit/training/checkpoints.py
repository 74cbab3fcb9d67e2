"""Place checkpoints, find the one that a training continues from, and explain a full disk."""

import hashlib
import json
import math
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from kit.errors import KitError, RunError
from kit.storage.atomic import disk_is_full

CHECKPOINTS = "checkpoints"


def require_no_checkpoints(fold: Path) -> None:
    """Raise RunError if the fold's folder holds an unfinished training."""
    if (fold / CHECKPOINTS).exists():
        raise RunError(
            f"{fold} holds an unfinished training",
            "Add --resume to continue it, or delete the folder to start again.",
        )


def place_checkpoints(fold: Path, scratch: Path | None) -> Path:
    """Return the folder of a fold's checkpoints, and link it to `scratch` if that is given.

    The fold's folder then has a link, so that a later process finds the checkpoints whether or not
    it is told of `scratch`. Checkpoints that are there already stay where they are.
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


def last_checkpoint(checkpoints: Path, below: float = math.inf) -> Path | None:
    """Return the newest checkpoint that is complete, removing those after it that are not.

    Args:
        below: remove checkpoints of this step and later.
    """
    folders = sorted(checkpoints.glob("checkpoint-*"), key=checkpoint_step, reverse=True)
    for folder in folders:
        if checkpoint_step(folder) >= below:
            shutil.rmtree(folder)
            continue

        # Trainer writes trainer_state.json last: without it the training was killed while it saved.
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(folder)
            continue

        # From the checkpoint at which early stopping ended the training, Trainer would continue.
        # From the one before it, the training stops here again.
        if folder != folders[-1] and _patience_is_used_up(state):
            shutil.rmtree(folder)
            continue
        return folder
    return None


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
