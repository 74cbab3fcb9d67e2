"""Check that curves for TensorBoard are kept in the run directory, and that it is optional."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from quick_recipe import QUICK
from transformers import TrainerCallback

from kit.cli.main import main
from kit.errors import RunError
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import HOLDOUT
from kit.training import callbacks
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=2")


def train_with_tensorboard(data: Path, runs: Path) -> Path:
    """Train the holdout, and return the folder of its first attempt's curves."""
    recipe = load_recipe("tiny-electra", SHORT)
    result = train_recipe(recipe, data, runs, report_to="tensorboard")
    return Run.open(result["run"]).fold(HOLDOUT).path / "tensorboard/attempt1"


def test_without_the_package_the_message_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    options = ["--report-to", "tensorboard", "--data", str(data), "--runs", str(tmp_path)]
    result = CliRunner().invoke(main, ["train", "--backbone", "tiny-electra", *options])
    assert result.exit_code == 1
    assert "pip install tensorboard" in result.output
    assert not list(tmp_path.iterdir())

    with pytest.raises(RunError):
        callbacks.require_tracker("tensorboard")
    callbacks.require_tracker(None)


class Recorder(TrainerCallback):
    """Stand in for transformers' TensorBoardCallback."""

    instances: list["Recorder"] = []  # noqa: RUF012

    def __init__(self):
        self.logging_dir = None
        self.logs: list[dict[str, float]] = []
        self.instances.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.logs.append(logs)


def test_curves_are_written_to_the_fold_and_hold_what_the_history_holds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: name)
    monkeypatch.setattr("transformers.integrations.TensorBoardCallback", Recorder)
    folder = train_with_tensorboard(data, tmp_path)
    (recorder,) = Recorder.instances
    assert recorder.logging_dir == str(folder)

    names = {name for logs in recorder.logs for name in logs}
    assert {
        "loss",
        "learning_rate",
        "grad_norm",
        "eval_log_loss",
        "eval_accuracy",
        "eval_spread",
    } <= names


def test_tensorboard_can_read_the_files(data: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train_with_tensorboard(data, tmp_path)))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("eval/log_loss")] == [2, 4]
