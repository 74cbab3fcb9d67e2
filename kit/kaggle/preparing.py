"""The options of `kit preprocess` that a training job carries: they make its rows, so they tell it from others."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kit.errors import RunError
from kit.run import Run

DEFAULTS = {
    "text": "unicode",
    "split": "grouped",
    "folds": 5,
    "valid": 0.1,
    "seed": 0,
}  # the command's own


def push_folds(options: Mapping[str, Any]) -> int:
    """The number of folds that they make."""
    return int(options.get("folds", DEFAULTS["folds"]))


def push_mark(options: Mapping[str, Any]) -> str:
    """Four hex digits for the options that are not the command's defaults; '' where all of them are."""
    said = {name: value for name, value in options.items() if value != DEFAULTS.get(name)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:4] if said else ""


def check_origin(options: Mapping[str, Any], run: Run) -> None:
    """Raises unless a run is of rows made with these options, as far as its origin knows (older ones know fewer).

    Raises:
        RunError: it is of others, so that what is trained with these could not be brought home to it.
    """
    origin = run.origin
    asked = {
        name: value
        for name, value in {**DEFAULTS, **options}.items()
        if origin.get(name, value) != value
    }
    if asked:
        had, wanted = (
            " ".join(f"--{name} {each[name]}" for name in asked) for each in (origin, asked)
        )
        raise RunError(
            f"{run.path} is of rows that were prepared with {had}, and this training is to be with {wanted}",
            "Give this training another folder with --runs.",
        )
