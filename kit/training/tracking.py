"""Curves for TensorBoard, where it is installed; the numbers themselves are always in trainer_state.json."""

from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from kit.errors import RunError


def require_tracker(report_to: str | None) -> None:
    """Raises, before anything is computed, unless the tracker's package is there.

    Raises:
        RunError: it is not installed.
    """
    if report_to and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise RunError(
            f"--report-to {report_to}: the package tensorboard is not installed",
            "Install it with `pip install tensorboard` (kit's extra [tensorboard]), or leave the option out.",
        )


def tensorboard_callback(folder: Path) -> TrainerCallback:
    """What Trainer's report_to="tensorboard" adds, in `folder`: Trainer's own place is deleted with the checkpoints."""
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(
        folder
    )  # the writer is opened when training begins, by the first process only
    return callback
