"""Every schedule and every extra resumes to the very weights of an undisturbed training, and does something at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.errors import RunError
from kit.recipe.load import load_recipe
from kit.training.callbacks import TrainingProgress
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=6", "train.evals_per_epoch=3")
CASES = {
    "linear": ("train.head_only=0.3", "train.ema=0.8"),
    "cosine": ("train.awp=0.01", "train.awp_start=0.3"),
    "constant": ("train.r_drop=2.0", "train.ema=0.999", "train.head_only=0.2"),
    "plateau": (
        "train.plateau_patience=0",
        "train.lr=0.05",
        "train.patience=2",
        "train.head_only=0.2",
    ),
}


def weights(result: dict[str, Any]) -> dict[str, bytes]:
    tensors = load_file(Path(result["run"]) / "holdout/model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("schedule", CASES)
def test_an_interrupted_training_ends_with_the_same_weights(
    schedule: str, data: Path, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", (*SHORT, f"train.schedule={schedule}", *CASES[schedule]))
    losses: list[float] = []

    def note(event: TrainingProgress) -> None:
        losses.extend([event.log_loss] if event.log_loss is not None else [])

    def interrupt(event: TrainingProgress) -> None:
        if event.log_loss is not None and event.step == 4:
            raise KeyboardInterrupt

    whole = train_recipe(recipe, data, tmp_path / "whole", listen=note)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt)
    resumed = train_recipe(recipe, data, tmp_path / "cut", resume=True)
    assert weights(resumed) == weights(whole)
    one, other = resumed["parts"]["holdout"], whole["parts"]["holdout"]
    for name in ("log_loss", "accuracy", "best_step", "steps", "skipped_steps"):
        assert one[name] == other[name], name
    assert other["log_loss"] == pytest.approx(
        min(losses), abs=1e-6
    )  # what was kept is what was evaluated
    assert len(losses) == 3


def test_an_interrupted_training_leaves_the_same_log(data: Path, tmp_path: Path):
    """Its checkpoint, after 11 steps, does not fall on a multiple of the 2 steps of a logged loss."""
    recipe = load_recipe(
        "tiny-electra",
        (*QUICK, "train.batch_size=18", "train.evals_per_epoch=1", "train.max_steps=14"),
    )

    def interrupt(event: TrainingProgress) -> None:
        if event.step == 14:
            raise KeyboardInterrupt

    whole = train_recipe(recipe, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", listen=interrupt)
    resumed = train_recipe(recipe, data, tmp_path / "cut", resume=True)
    one, other = (_log(Path(run["run"]) / "holdout/trainer_state.json") for run in (whole, resumed))
    assert {11, 12, 14} <= {entry["step"] for entry in one if "loss" in entry}
    assert one == other


def _log(file: Path) -> list[dict[str, float]]:
    """Without the last entry, Trainer's own figures of the time since the resume."""
    *entries, last = json.loads(file.read_text())["log_history"]
    assert "train_runtime" in last
    return entries


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (("train.ema=0.5",), False),
        (("train.awp=0.05", "train.awp_start=0.5"), False),
        (("train.awp=0.05", "train.awp_start=1.0"), True),
        (("train.r_drop=3.0",), False),
        (("train.head_only=0.5",), False),
        (("train.reinit_layers=1",), False),
    ],
)
def test_an_extra_changes_the_weights_and_before_its_time_not_one_bit(
    overrides: tuple[str, ...], same: bool, plain: dict[str, bytes], data: Path, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", (*SHORT, "train.max_steps=2", *overrides))
    assert (weights(train_recipe(recipe, data, tmp_path)) == plain) == same


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of two steps with nothing extra."""
    recipe = load_recipe("tiny-electra", (*SHORT, "train.max_steps=2"))
    return weights(train_recipe(recipe, data, tmp_path_factory.mktemp("plain")))


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
    assert weights(resumed) == weights(whole)
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
