"""Find the checkpoint that a training continues from, and explain a disk that is full."""

import json
import math
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from kit.errors import KitError, RunError
from kit.storage.atomic import disk_is_full, write_json

CHECKPOINTS = "checkpoints"

# Among the checkpoints: the tokens of a forward pass, so that a resumed training takes the same
# passes, and draws the same dropout, however much memory is free then.
PASSES = "passes.json"


def require_no_checkpoints(fold: Path) -> None:
    """Raise RunError if the fold's folder holds an unfinished training."""
    if (fold / CHECKPOINTS).exists():
        raise RunError(
            f"{fold} holds an unfinished training",
            "Add --resume to continue it, or delete the folder to start again.",
        )


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


def read_pass_tokens(checkpoints: Path) -> int | None:
    """Return the most tokens of this training's passes, 0 for no limit; None if it never began."""
    try:
        return int(json.loads((checkpoints / PASSES).read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_pass_tokens(checkpoints: Path, tokens: int) -> None:
    """Write the most tokens of this training's passes."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(checkpoints / PASSES, {"tokens": tokens})


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
