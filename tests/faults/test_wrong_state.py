"""Check that files that do not belong together are noticed, by a hash, an id or a version."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from compare_runs import compare
from quick_recipe import QUICK

from kit.baselines.run import run_baseline
from kit.data.preprocess import preprocess_files
from kit.ensembling.pool import blend_predictions
from kit.errors import DataError, RunError
from kit.model.backbones import local_backbone, resolve_backbone
from kit.predict import predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.storage.atomic import write_json
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=1", "train.evals_per_epoch=1")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with its holdout and its first fold."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = load_recipe("tiny-electra", SHORT)
    train_recipe(recipe, data, runs, "0")
    return Path(train_recipe(recipe, data, runs)["run"])


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """Copy the trained run, to change files in it."""
    return Run(Path(shutil.copytree(trained, tmp_path / trained.name)))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def test_an_unchanged_copy_predicts_the_same(run: Run, trained: Path, data: Path):
    assert predict_split(run.path, "valid", data).equals(predict_split(trained, "valid", data))


def test_a_run_of_a_newer_kit_is_refused(run: Run, data: Path):
    edit_json(run.path / "origin.json", lambda origin: origin.update(format=2, kit="9.0"))

    with pytest.raises(RunError, match=r"made by kit 9\.0, newer than this"):
        predict_split(run.path, "valid", data)


def test_an_unknown_recipe_key_names_both_versions_of_kit(run: Run, data: Path):
    recipe = run.path / "recipe.toml"
    recipe.write_text(recipe.read_text() + "\n[future]\nkey = 1\n")
    edit_json(
        run.path / "origin.json", lambda origin: [origin.pop("recipe"), origin.update(kit="0.9")]
    )

    with pytest.raises(RunError, match=r"written by kit 0\.9, this is kit .*unknown key future"):
        predict_split(run.path, "valid", data)


@pytest.mark.parametrize(
    "change", [("max_tokens = 32", "max_tokens = 64"), ("swap = true", "swap = false")]
)
def test_a_recipe_edited_after_training_is_noticed(run: Run, data: Path, change: tuple[str, str]):
    recipe = run.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(*change))

    with pytest.raises(RunError, match="edited after the run began"):
        predict_split(run.path, "valid", data)


def test_comments_and_line_ends_in_a_recipe_do_not_matter(run: Run, data: Path):
    recipe = run.path / "recipe.toml"
    recipe.write_text("# ours\r\n" + recipe.read_text().replace("\n", "\r\n"), newline="")

    assert len(predict_split(run.path, "valid", data))


def test_a_run_of_an_older_kit_without_hashes_still_works(run: Run, data: Path, trained: Path):
    edit_json(run.path / "origin.json", lambda origin: [origin.pop("format"), origin.pop("recipe")])
    edit_json(run.fold("holdout").path / "metrics.json", lambda metrics: metrics.pop("files"))
    assert predict_split(run.path, "valid", data).equals(predict_split(trained, "valid", data))


def test_rows_preprocessed_again_are_noticed(run: Run, raw: Path, tmp_path: Path):
    preprocess_files(raw, tmp_path / "other", folds=3, valid=0.2, seed=1)

    for action in (
        lambda: predict_split(run.path, "valid", tmp_path / "other"),
        lambda: train_recipe(run.recipe, tmp_path / "other", run.path.parent),
        lambda: compare([run.path], tmp_path / "other"),
    ):
        with pytest.raises(RunError, match="different data"):
            action()


def test_weights_of_another_fold_are_noticed(run: Run, data: Path):
    """Their shapes fit the model as well as those of its own fold."""
    shutil.copyfile(
        run.fold(0).path / "model.safetensors", run.fold("holdout").path / "model.safetensors"
    )

    with pytest.raises(RunError, match=r"holdout/model\.safetensors has changed: its SHA-256"):
        predict_split(run.path, "valid", data)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_flipped_bit_is_noticed(run: Run, data: Path, name: str):
    path = run.fold("holdout").path / name
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)

    with pytest.raises(RunError, match="SHA-256"):
        predict_split(run.path, "valid", data)


def test_weights_of_another_architecture_are_refused(run: Run, data: Path):
    edit_json(
        run.fold("holdout").path / "config.json",
        lambda config: config["encoder"].update(num_hidden_layers=7),
    )
    edit_json(run.fold("holdout").path / "metrics.json", lambda metrics: metrics.pop("files"))

    with pytest.raises(RunError, match=r"model\.safetensors does not belong to config\.json"):
        predict_split(run.path, "valid", data)


def test_a_backbone_folder_that_changed_is_noticed(tmp_path: Path):
    folder = tmp_path / "backbone"
    folder.mkdir()
    for name, text in (
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "weights"),
    ):
        (folder / name).write_text(text)
    (folder / "README.md").write_text("words")

    recipe = load_recipe("tiny-electra", backbone=str(folder))
    origin = {"data": "x", "backbone": resolve_backbone(str(folder)).digest}
    Run.create(tmp_path / "runs", recipe, origin)

    # A README does not matter, the weights do.
    (folder / "README.md").write_text("other words")
    Run.create(tmp_path / "runs", recipe, origin | {"backbone": local_backbone(folder).digest})

    (folder / "model.safetensors").write_text("Weights")
    with pytest.raises(RunError, match=r"the files in the backbone folder .* have changed"):
        Run.create(
            tmp_path / "runs", recipe, origin | {"backbone": resolve_backbone(str(folder)).digest}
        )


def test_predictions_of_another_fold_are_refused(data: Path, tmp_path: Path):
    folder = Path(run_baseline("uniform", data, tmp_path, "all")["run"])
    shutil.copyfile(folder / "fold0/valid.csv", folder / "fold1/valid.csv")
    with pytest.raises(RunError, match=r"fold1/valid\.csv has changed"):
        run_baseline("uniform", data, tmp_path, "all")

    # A run of an older kit lists no files.
    edit_json(folder / "fold1/metrics.json", lambda metrics: metrics.pop("files"))
    with pytest.raises(
        RunError, match=r"has .* rows, but its metrics|validation rows of two folds"
    ):
        run_baseline("uniform", data, tmp_path, "all")


def test_predictions_with_different_ids_are_not_blended(data: Path, tmp_path: Path):
    folder = Path(run_baseline("uniform", data, tmp_path, "all")["run"])
    frames = [read_predictions(folder / name) for name in ("fold0/valid.csv", "fold1/valid.csv")]

    with pytest.raises(DataError, match=r"lacks .* ids"):
        blend_predictions(frames, ["one", "other"])
