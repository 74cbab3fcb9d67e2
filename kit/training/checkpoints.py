"""The checkpoints of an unfinished part: where they are, and which one a training can go on from."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from kit.errors import RunError

CHECKPOINTS = "checkpoints"


def require_no_checkpoints(part: Path) -> None:
    """Raises RunError where an unfinished training is there."""
    if (part / CHECKPOINTS).exists():
        raise RunError(
            f"{part}: an unfinished training is there",
            "Add --resume to go on with it, or delete the folder to start afresh.",
        )


def last_whole_checkpoint(checkpoints: Path, below: float = math.inf) -> Path | None:
    """The newest checkpoint that was written to its end: Trainer writes trainer_state.json last.

    Args:
        below: the checkpoint of this step and later ones are of no use, and are removed.
    """
    found = sorted(checkpoints.glob("checkpoint-*"), key=checkpoint_step, reverse=True)
    for folder in found:
        if checkpoint_step(folder) >= below:
            shutil.rmtree(folder)
            continue
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(folder)  # half written when the training was killed
            continue
        if folder != found[-1] and _out_of_patience(state):
            shutil.rmtree(
                folder
            )  # Trainer would go on from it; from the one before it stops here again
            continue
        return folder
    return None


def _out_of_patience(state: dict[str, Any]) -> bool:
    """Whether early stopping ended the training at this checkpoint."""
    saved = state.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__, {})
    waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return bool(saved) and waited >= saved["args"]["early_stopping_patience"]


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
