"""Send a training's curves to TensorBoard, Weights & Biases or MLflow, through Trainer's callbacks.

Use `choose_loggers` before anything is computed, and `open_loggers` around a training. Where
Weights & Biases and MLflow write, or which server they ask, their own variables decide.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError, RunError
from kit.launcher import is_leader
from kit.recipe.spec import KEYS, Recipe

if TYPE_CHECKING:
    from transformers import TrainerCallback

# The packages of which each logger needs one. Each logger is also an extra of kit.
LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}

# What to do where a logger cannot begin.
_OFFLINE = {
    "tensorboard": "Leave it out of --log.",
    "wandb": "Run `wandb login`, or set WANDB_MODE=offline, which keeps the curves here.",
    "mlflow": "Unset MLFLOW_TRACKING_URI, which keeps the curves here, or leave it out of --log.",
}

# A callback, and the function that ends what was begun for it.
Begun = tuple["TrainerCallback", Callable[[], object]]

# The project of Weights & Biases, and the experiment of MLflow, unless a variable names another.
PROJECT = "kit"


def choose_loggers(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the loggers that are asked for, each once.

    Args:
        names: "tensorboard,wandb" or a list of such names; None for no logger.

    Raises:
        KitError: there is no such logger.
        RunError: its package is not installed.
    """
    parts = names.split(",") if isinstance(names, str) else names or ()
    chosen = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for name in chosen:
        if name not in LOGGERS:
            raise KitError(f"no logger {name!r}", f"Choose from: {', '.join(LOGGERS)}.")
        if not any(find_spec(package) for package in LOGGERS[name]):
            raise RunError(
                f"--log {name}: the package {name} is not installed",
                f"Install it with `pip install {name}` (kit's extra [{name}]), or leave it out.",
            )
    if "wandb" in chosen and is_leader():
        _require_login()
    return chosen


@contextmanager
def open_loggers(
    names: Sequence[str], recipe: Recipe, folder: Path, attempt: int
) -> "Generator[list[TrainerCallback]]":
    """Yield Trainer's callbacks for one training of a fold, and end what they began.

    The loggers' runs have the fold's name and the keys of the recipe. Only the first process of
    torchrun logs.

    Args:
        folder: of the fold. TensorBoard's files go to its folder of that name.
        attempt: the number of this training, from 1, where earlier ones collapsed.

    Raises:
        RunError: a logger cannot begin, as where its server does not answer.
    """
    title = f"{folder.parent.name}/{folder.name}"
    keys = {"backbone": recipe.backbone} | {name: attrgetter(name)(recipe) for name in KEYS}
    with ExitStack() as ends:
        callbacks = []
        for name in names if is_leader() else ():
            try:
                callback, end = _BEGIN[name](title, keys, folder / name / f"attempt{attempt}")
            # Each library has its own errors.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RunError(f"--log {name}: {reason}", _OFFLINE[name]) from error
            callbacks.append(callback)
            ends.callback(end)
        yield callbacks


def _require_login() -> None:
    """Raise RunError if Weights & Biases is online and there is no login."""
    wandb = import_module("wandb")

    try:
        ready = wandb.setup().settings.mode != "online" or wandb.login(prompt=False)
    except wandb.Error as error:
        raise RunError(f"--log wandb: {error}", _OFFLINE["wandb"]) from error
    if not ready:
        raise RunError("--log wandb: there is no login", _OFFLINE["wandb"])


def _begin_tensorboard(_title: str, _keys: dict[str, Any], folder: Path) -> Begun:
    from transformers.integrations import TensorBoardCallback

    # Trainer's default folder is deleted together with the checkpoints. The callback opens and
    # closes its file itself.
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback, lambda: None


def _begin_wandb(title: str, keys: dict[str, Any], _folder: Path) -> Begun:
    from transformers.integrations import WandbCallback

    wandb = import_module("wandb")
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=title,
        group=title.split("/")[0],
        config=keys,
        # It would record every move of the display.
        settings=wandb.Settings(console="off"),
    )
    # The callback goes on in a run that has begun, and leaves its end to who began it: without
    # that, the next fold would go on in the same run.
    return WandbCallback(), wandb.finish


def _begin_mlflow(title: str, keys: dict[str, Any], _folder: Path) -> Begun:
    from transformers.integrations import MLflowCallback

    mlflow = import_module("mlflow")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    mlflow.start_run(run_name=title)
    mlflow.log_params(keys)
    return MLflowCallback(), mlflow.end_run


_BEGIN: dict[str, Callable[[str, dict[str, Any], Path], Begun]] = {
    "tensorboard": _begin_tensorboard,
    "wandb": _begin_wandb,
    "mlflow": _begin_mlflow,
}
