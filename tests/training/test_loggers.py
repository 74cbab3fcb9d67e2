"""Check that curves reach each logger, offline, and that none of them is needed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from quick_recipe import QUICK
from transformers import TrainerCallback

from kit.cli.main import main
from kit.errors import KitError, RunError
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import HOLDOUT
from kit.training import loggers
from kit.training.loggers import choose_loggers
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=6")
CURVES = {"loss", "learning_rate", "grad_norm", "eval_log_loss", "eval_accuracy", "eval_spread"}


class Recorder(TrainerCallback):
    """Stand in for one of transformers' callbacks, and keep what it is told."""

    instances: list["Recorder"] = []  # noqa: RUF012

    def __init__(self):
        self.logging_dir = None
        self.logs: list[dict[str, float]] = []
        self.instances.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.logs.append(logs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stand in for the packages wandb and mlflow, and return what they are called with."""
    made: list[tuple[str, Any]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda *args, **options: made.append((name, options or args))

    wandb = ModuleType("wandb")
    settings = SimpleNamespace(mode="offline")
    wandb.Error = RuntimeError
    wandb.Settings = lambda **options: options
    wandb.setup = lambda: SimpleNamespace(settings=settings)
    wandb.login = lambda prompt: False
    wandb.init, wandb.finish = record("wandb.init"), record("wandb.finish")
    mlflow = ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "end_run"):
        setattr(mlflow, name, record(f"mlflow.{name}"))

    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    for name in ("TensorBoardCallback", "WandbCallback", "MLflowCallback"):
        monkeypatch.setattr(f"transformers.integrations.{name}", Recorder)
    monkeypatch.setattr(Recorder, "instances", [])
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.mark.parametrize("option", ["--log", "--report-to"])
@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_without_the_package_the_message_says_what_to_install(
    name: str, option: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    options = [option, name, "--data", str(data), "--runs", str(tmp_path)]
    result = CliRunner().invoke(main, ["train", "--backbone", "tiny-electra", *options])
    assert result.exit_code == 1
    assert f"pip install {name}" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("calls")
def test_loggers_are_chosen_by_name():
    assert choose_loggers(None) == choose_loggers("") == ()
    assert choose_loggers("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    assert choose_loggers(["mlflow"]) == ("mlflow",)
    with pytest.raises(KitError, match="tensorboard, wandb, mlflow"):
        choose_loggers("tensorbord")


@pytest.mark.usefixtures("calls")
def test_nobody_logged_in_is_said_before_a_run_begins(data: Path, tmp_path: Path):
    sys.modules["wandb"].setup().settings.mode = "online"
    with pytest.raises(RunError, match="WANDB_MODE=offline"):
        train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, report_to="wandb")
    assert not list(tmp_path.iterdir())


def test_each_logger_gets_the_curves_and_its_run_ends_with_the_fold(
    calls: list[tuple[str, Any]], data: Path, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", SHORT)
    train_recipe(recipe, data, tmp_path, report_to="tensorboard,wandb,mlflow")
    title = f"{recipe.run_name}/{HOLDOUT}"
    assert [name for name, _ in calls] == [
        "wandb.init",
        "mlflow.set_experiment",
        "mlflow.start_run",
        "mlflow.log_params",
        "mlflow.end_run",
        "wandb.finish",
    ]
    started = dict(calls)
    assert started["wandb.init"]["name"] == started["mlflow.start_run"]["run_name"] == title
    assert started["wandb.init"]["config"]["train.max_steps"] == 4
    assert started["mlflow.set_experiment"] == ("kit",)

    assert len(Recorder.instances) == 3
    for recorder in Recorder.instances:
        assert {name for logs in recorder.logs for name in logs} >= CURVES
    folder = tmp_path / title / "tensorboard/attempt1"
    assert Recorder.instances[0].logging_dir == str(folder)


def test_a_logger_that_cannot_begin_is_one_message_and_ends_the_others(
    calls: list[tuple[str, Any]], data: Path, tmp_path: Path
):
    def fail(**_: Any) -> None:
        raise RuntimeError("connection refused\nmore")

    sys.modules["mlflow"].start_run = fail
    with pytest.raises(RunError) as caught:
        train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, report_to="wandb,mlflow")
    assert caught.value.problem == "--log mlflow: connection refused"
    assert "MLFLOW_TRACKING_URI" in caught.value.hint
    assert calls[-1][0] == "wandb.finish"


@pytest.mark.usefixtures("calls")
def test_a_logger_that_cannot_begin_leaves_no_empty_run_and_no_checkpoints_elsewhere(
    data: Path, tmp_path: Path
):
    def fail(**_: Any) -> None:
        raise RuntimeError("connection refused")

    recipe = load_recipe("tiny-electra", SHORT)
    begin = sys.modules["wandb"].init
    sys.modules["wandb"].init = fail
    (tmp_path / "scratch").mkdir()
    with pytest.raises(RunError, match="connection refused"):
        train_recipe(
            recipe, data, tmp_path / "runs", report_to="wandb", scratch=tmp_path / "scratch"
        )
    assert not list((tmp_path / "runs").iterdir())
    assert not list((tmp_path / "scratch").iterdir())

    # A run that is not this command's beginning stays.
    sys.modules["wandb"].init = begin
    run = Path(train_recipe(recipe, data, tmp_path / "runs", report_to="wandb")["run"])
    sys.modules["wandb"].init = fail
    with pytest.raises(RunError, match="connection refused"):
        train_recipe(recipe, data, tmp_path / "runs", "0", report_to="wandb")
    assert (run / "holdout/metrics.json").is_file()


def test_tensorboard_can_read_the_files(data: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = load_recipe("tiny-electra", SHORT)
    result = train_recipe(recipe, data, tmp_path, report_to="tensorboard")
    folder = Run.open(result["run"]).fold(HOLDOUT).path / "tensorboard/attempt1"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("eval/log_loss")] == [2, 4]
