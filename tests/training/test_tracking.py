"""Curves for TensorBoard stay in the run directory, and its absence is one clear message."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from quick_recipe import QUICK
from transformers import TrainerCallback

from kit.cli.main import main
from kit.errors import RunError
from kit.recipe.load import load_recipe
from kit.training import callbacks
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=2")


def test_without_the_package_the_message_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    settings = ["--report-to", "tensorboard", "--data", str(data), "--runs", str(tmp_path)]
    result = CliRunner().invoke(main, ["train", "--backbone", "tiny-electra", *settings])
    assert result.exit_code == 1
    assert "pip install tensorboard" in result.output
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError):
        callbacks.require_tracker("tensorboard")
    callbacks.require_tracker(None)


class Recorder(TrainerCallback):
    """Stands in for transformers' callback."""

    made: list["Recorder"] = []  # noqa: RUF012

    def __init__(self):
        self.logging_dir, self.seen = None, []
        self.made.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.seen.append(logs)


def test_the_curves_go_to_the_part_and_hold_what_the_history_holds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: name)
    monkeypatch.setattr("transformers.integrations.TensorBoardCallback", Recorder)
    run = Path(
        train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, report_to="tensorboard")[
            "run"
        ]
    )
    (recorder,) = Recorder.made
    assert recorder.logging_dir == str(run / "holdout/tensorboard/attempt1")
    names = {name for logs in recorder.seen for name in logs}
    assert {
        "loss",
        "learning_rate",
        "grad_norm",
        "eval_log_loss",
        "eval_accuracy",
        "eval_spread",
    } <= names


def test_the_files_are_tensorboards(data: Path, tmp_path: Path):
    run = Path(
        train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, report_to="tensorboard")[
            "run"
        ]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "holdout/tensorboard/attempt1"))
    events.Reload()
    assert [each.step for each in events.Scalars("eval/log_loss")] == [2, 4]
