"""Say why a run is not in the comparison, and what would bring it in.

Use `LeftOut` and `next_training`; `describe_foreign` is for a run of other data.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.errors import RunError
from kit.run import Run
from kit.task import HOLDOUT


@dataclass(frozen=True)
class LeftOut:
    """A model that is not compared on the report's validation rows.

    Attributes:
        name: the model's name.
        reason: in words.
        compared_on: the rows of another table that it is in, such as "90 holdout rows", or nothing.
    """

    name: str
    reason: str
    compared_on: str = ""

    def describe(self) -> str:
        """Return in one sentence whether it is in another table or in none, and why."""
        if self.compared_on:
            return f"{self.name} is compared apart, on {self.compared_on}: {self.reason}"
        return f"{self.name} is left out: {self.reason}"


@dataclass(frozen=True)
class ForeignRun:
    """A run that was trained on other data, so that its rows and labels are not at hand.

    Attributes:
        name: the run's name.
        data: the first digits of the SHA-256 of the rows that it was trained on.
        losses: the log losses that its training noted, by the name of the rows.
    """

    name: str
    data: str
    losses: Mapping[str, float]


def next_training(run: Run, data: Path, fold: str) -> str:
    """Return the command that trains one part of a run or all, as the end of a sentence."""
    words = ["kit", "train", "--recipe", str(run.recipe_path)]
    if run.baseline:
        words = shlex.split(run.command)
    words += ["--data", str(data), "--runs", str(run.path.parent), "--fold", fold]
    return f"next: {shlex.join(words)}"


def describe_foreign(run: Run) -> ForeignRun:
    """Return what is known of a run that was trained on other data."""
    losses = {}
    try:
        metrics = run.metrics
        if "oof" in metrics:
            losses["out-of-fold"] = float(metrics["oof"]["log_loss"])
        for fold in run.finished():
            if fold.name == HOLDOUT or "oof" not in metrics:
                losses[fold.name.replace("fold", "fold ")] = fold.figure("log_loss")
    except RunError:
        # It is not compared in any case; a damaged file in it is named by what reads the run.
        losses = {}
    return ForeignRun(run.name, run.option("data", str)[:12], losses)
