"""Check that a training continues from a whole checkpoint, or from the one before it."""

import shutil
from pathlib import Path

import pytest
from quick_recipe import QUICK
from trained_weights import weights

from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.training.callbacks import TrainingProgress
from kit.training.checkpoints import checkpoint_files
from kit.training.train import train_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Return a recipe of six steps with a checkpoint at every second one."""
    short = ("train.max_steps=6", "train.evals_per_epoch=6")
    return load_recipe("tiny-electra", (*QUICK, *short))


@pytest.fixture(scope="module")
def whole(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the weights of an undisturbed training."""
    return weights(train_recipe(recipe, data, tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def interrupted(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs of a training that was interrupted after two checkpoints."""
    runs = tmp_path_factory.mktemp("interrupted")

    def interrupt(event: TrainingProgress) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, runs, listen=interrupt)
    return runs


@pytest.mark.parametrize("change", ["deleted", "cut short", "emptied"])
@pytest.mark.parametrize("name", [*checkpoint_files("fp32", 1)])
def test_a_checkpoint_that_lost_a_file_is_passed_over_in_one_line(
    name: str,
    change: str,
    recipe: Recipe,
    whole: dict[str, bytes],
    interrupted: Path,
    data: Path,
    tmp_path: Path,
):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    damage(max(tmp_path.rglob("checkpoint-4")) / name, change)

    lines: list[str] = []
    resumed = train_recipe(recipe, data, tmp_path, resume=True, say=lines.append)
    told = [line for line in lines if "passed over" in line]
    assert len(told) == 1
    assert f"{name} is {'missing' if change == 'deleted' else 'incomplete'}" in told[0]
    assert weights(resumed) == whole


def test_without_a_whole_checkpoint_the_training_starts_again_and_says_so(
    recipe: Recipe, whole: dict[str, bytes], interrupted: Path, data: Path, tmp_path: Path
):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.rglob("optimizer.pt"):
        file.unlink()

    lines: list[str] = []
    resumed = train_recipe(recipe, data, tmp_path, resume=True, say=lines.append)
    assert any("starts again" in line for line in lines)
    assert weights(resumed) == whole


def test_a_copy_beside_the_checkpoints_does_not_stop_a_resumed_training(
    recipe: Recipe, whole: dict[str, bytes], interrupted: Path, data: Path, tmp_path: Path
):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    last = next(tmp_path.rglob("checkpoint-4"))
    shutil.copytree(last, last.with_name("checkpoint-4-best"))
    (last.with_name("checkpoint-9.zip")).touch()
    lines: list[str] = []
    resumed = train_recipe(recipe, data, tmp_path, resume=True, say=lines.append)
    assert "resuming from step 4" in lines
    assert weights(resumed) == whole


def test_files_that_only_some_trainings_need_are_asked_of_them_alone():
    assert "scaler.pt" not in checkpoint_files("bf16", 1)
    assert "scaler.pt" in checkpoint_files("fp16", 1)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {*checkpoint_files("fp32", 2)}


def damage(file: Path, change: str) -> None:
    """Delete a file, cut it in half, or empty it."""
    content = file.read_bytes()
    file.unlink()
    if change != "deleted":
        file.write_bytes(content[: len(content) // 2] if change == "cut short" else b"")
