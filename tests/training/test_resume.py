"""Check that an interrupted training resumes to the very weights of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.errors import RunError
from kit.fold_dir import FoldDir
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.task import HOLDOUT
from kit.training import fold
from kit.training.callbacks import TrainingProgress
from kit.training.checkpoints import last_checkpoint
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=6", "train.evals_per_epoch=6")

# Between them, the schedules cover all extras that have a state of their own.
EXTRAS = {
    "linear": ("train.head_only=0.3",),
    "cosine": ("train.reinit_layers=1",),
    "constant": ("train.r_drop=2.0", "train.head_only=0.2"),
    "plateau": (
        "train.plateau_patience=0",
        "train.lr=0.05",
        "train.patience=2",
        "train.head_only=0.2",
    ),
}

# At these rates the loss soon rises, so early stopping ends the training.
STOPS_EARLY = (
    "train.epochs=50",
    "train.lr=0.2",
    "train.head_lr=0.2",
    "train.patience=2",
    "train.warmup=0.0",
)


def train_holdout(recipe: Recipe, data: Path, runs: Path, **options: Any) -> FoldDir:
    """Train the holdout, and return its folder."""
    return Run.open(train_recipe(recipe, data, runs, **options)["run"]).fold(HOLDOUT)


def assert_same_weights(holdout: FoldDir, expected: FoldDir) -> None:
    weights = load_file(holdout.path / "model.safetensors")
    expected_weights = load_file(expected.path / "model.safetensors")
    assert set(weights) == set(expected_weights)
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected_weights[name]), name


def assert_same_metrics(holdout: FoldDir, expected: FoldDir, *names: str) -> None:
    metrics = holdout.metrics
    assert {name: metrics[name] for name in names} == {
        name: expected.metrics[name] for name in names
    }


@pytest.mark.parametrize("schedule", EXTRAS)
def test_an_interrupted_training_ends_with_the_same_weights(
    schedule: str, data: Path, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", (*SHORT, f"train.schedule={schedule}", *EXTRAS[schedule]))
    losses: list[float] = []

    def record(event: TrainingProgress) -> None:
        if event.log_loss is not None:
            losses.append(event.log_loss)

    def interrupt(event: TrainingProgress) -> None:
        if event.log_loss is not None and event.step == 4:
            raise KeyboardInterrupt

    whole = train_holdout(recipe, data, tmp_path / "whole", listen=record)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt)
    resumed = train_holdout(recipe, data, tmp_path / "cut", resume=True)

    assert_same_weights(resumed, whole)
    assert_same_metrics(
        resumed, whole, "log_loss", "accuracy", "best_step", "steps", "skipped_steps"
    )

    # The weights that are kept are those that were evaluated.
    assert whole.metrics["log_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert len(losses) == 3


def test_an_interrupted_training_leaves_the_same_log(data: Path, tmp_path: Path):
    """The checkpoint after 11 steps is between two logged losses; one is logged every 2 steps."""
    overrides = ("train.batch_size=18", "train.evals_per_epoch=1", "train.max_steps=14")
    recipe = load_recipe("tiny-electra", (*QUICK, *overrides))

    def interrupt(event: TrainingProgress) -> None:
        if event.step == 14:
            raise KeyboardInterrupt

    whole = train_holdout(recipe, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt)
    resumed = train_holdout(recipe, data, tmp_path / "cut", resume=True)

    log = read_log(whole)
    assert {11, 12, 14} <= {entry["step"] for entry in log if "loss" in entry}
    assert log == read_log(resumed)


def read_log(holdout: FoldDir) -> list[dict[str, float]]:
    """Return the log without its last entry, which measures the time since the resume."""
    *entries, last = json.loads(holdout.history_path.read_text())["log_history"]
    assert "train_runtime" in last
    return entries


def test_a_killed_training_resumes_to_the_same_result(trained_run: Run, data: Path, tmp_path: Path):
    """The process gets SIGKILL in the middle of the second epoch."""
    settings = [argument for override in QUICK for argument in ("--set", override)]
    command = [sys.executable, "-m", "kit", "train", "--backbone", "tiny-electra"]
    command += ["--data", str(data), "--runs", str(tmp_path), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)

    holdout = FoldDir(tmp_path / trained_run.name / HOLDOUT)
    checkpoint = holdout.path / "checkpoints/checkpoint-15/trainer_state.json"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not holdout.is_finished, "the training finished before it could be killed"

    # Without --resume the half-done work is neither lost nor continued.
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "--resume" in again.stderr

    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step" in resumed.stderr
    expected = trained_run.fold(HOLDOUT)
    assert_same_metrics(holdout, expected, "log_loss", "accuracy", "best_step", "steps")
    assert_same_weights(holdout, expected)


def test_an_incomplete_checkpoint_is_removed(tmp_path: Path):
    for step, state in ((4, "{}"), (8, "{}"), (12, '{"cut'), (16, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert not (tmp_path / "checkpoint-16").exists()


def test_a_run_that_was_moved_resumes_with_its_best_weights(
    trained_run: Run, quick: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The state names the best checkpoint by its path, which is another one after the move."""
    with monkeypatch.context() as patch:
        interrupt_in(fold, "_write_fold", patch)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(quick, data, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")

    moved = train_holdout(quick, data, tmp_path / "after", resume=True)
    assert_same_metrics(moved, trained_run.fold(HOLDOUT), "log_loss")


@pytest.mark.parametrize(
    "overrides", [("train.max_steps=4",), STOPS_EARLY], ids=["last step", "early stopping"]
)
def test_a_training_killed_after_its_last_step_takes_no_more_steps(
    overrides: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Trainer alone would continue such a checkpoint to the next batch, or evaluation."""
    recipe = load_recipe("tiny-electra", (*QUICK, *overrides))
    whole = train_holdout(recipe, data, tmp_path / "whole")

    with monkeypatch.context() as patch:
        interrupt_in(fold, "predict_logits", patch)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, data, tmp_path / "cut")
    assert list((tmp_path / "cut").rglob(f"checkpoint-{whole.metrics['steps']}"))

    resumed = train_holdout(recipe, data, tmp_path / "cut", resume=True)
    assert_same_metrics(resumed, whole, "steps", "best_step", "log_loss", "padding_waste")


def interrupt_in(module: Any, function: str, patch: pytest.MonkeyPatch) -> None:
    """Make a function of a module raise KeyboardInterrupt."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(module, function, interrupt)


def test_early_stopping_remembers_how_long_it_has_waited(data: Path, tmp_path: Path):
    """The interruption is between the first evaluation without a better loss and the second."""
    recipe = load_recipe("tiny-electra", (*QUICK, *STOPS_EARLY))
    whole = train_holdout(recipe, data, tmp_path / "whole")
    best_step = whole.metrics["best_step"]
    eval_steps = (whole.metrics["steps"] - best_step) // 2

    def interrupt(event: TrainingProgress) -> None:
        if event.log_loss is not None and event.step == best_step + 2 * eval_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt)
    resumed = train_holdout(recipe, data, tmp_path / "cut", resume=True)
    assert_same_metrics(resumed, whole, "steps", "best_step", "log_loss")


@pytest.fixture(scope="module")
def without_extras(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights after two steps without any extra."""
    recipe = load_recipe("tiny-electra", (*SHORT, "train.max_steps=2"))
    holdout = train_holdout(recipe, data, tmp_path_factory.mktemp("plain"))
    return load_file(holdout.path / "model.safetensors")


@pytest.mark.parametrize(
    "override", ["train.r_drop=3.0", "train.head_only=0.5", "train.reinit_layers=1"]
)
def test_an_extra_changes_the_weights(
    override: str,
    without_extras: dict[str, torch.Tensor],
    data: Path,
    tmp_path: Path,
):
    recipe = load_recipe("tiny-electra", (*SHORT, "train.max_steps=2", override))
    holdout = train_holdout(recipe, data, tmp_path)
    weights = load_file(holdout.path / "model.safetensors")
    assert not all(torch.equal(tensor, without_extras[name]) for name, tensor in weights.items())


def test_checkpoints_on_a_scratch_disk_are_found_again(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    scratch = tmp_path / "scratch"

    def interrupt(event: TrainingProgress) -> None:
        if event.log_loss is not None and event.step == 4:
            raise KeyboardInterrupt

    whole = train_recipe(recipe, data, tmp_path / "whole", scratch=scratch)
    assert list(scratch.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt, scratch=scratch)

    # Nothing of a checkpoint is on the disk of the run.
    assert list(scratch.rglob("optimizer.pt"))
    fold = tmp_path / "cut" / recipe.run_name / "holdout"
    assert [path for path in fold.rglob("*") if path.is_file() and not path.is_symlink()] == []
    with pytest.raises(RunError, match="--resume"):
        train_recipe(recipe, data, tmp_path / "cut")

    resumed = train_recipe(recipe, data, tmp_path / "cut", resume=True)
    name = "holdout/model.safetensors"
    resumed_weights = (Path(resumed["run"]) / name).read_bytes()
    assert resumed_weights == (Path(whole["run"]) / name).read_bytes()
    assert not (fold / "checkpoints").is_symlink()
    assert list(scratch.iterdir()) == []


def test_a_training_starts_again_where_the_scratch_disk_is_gone(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)

    def interrupt(event: TrainingProgress) -> None:
        if event.step == 4:
            raise KeyboardInterrupt

    scratch = tmp_path / "scratch"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "runs", listen=interrupt, scratch=scratch)
    shutil.rmtree(scratch)
    result = train_recipe(recipe, data, tmp_path / "runs", resume=True)
    assert result["parts"]["holdout"]["steps"] == 6
