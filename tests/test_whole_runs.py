"""Check that every reader refuses a run that lost a file or has another one in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from quick_recipe import QUICK

import kit
import kit.fold_dir
from kit.baselines.run import run_baseline
from kit.errors import RunError
from kit.kaggle import collect
from kit.kaggle.client import Client
from kit.kaggle.datasets import publish_dataset
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.sources import parse_sources
from kit.predict import predict_split
from kit.predictions import write_predictions
from kit.recipe.load import load_recipe
from kit.reporting.gather import gather_inputs
from kit.run import Run
from kit.training.train import train_recipe

NO_CLIENT = cast(Client, None)
REF = KernelRef.parse("me/kit-train/1")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with every fold and test predictions."""
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2"))
    run = Path(train_recipe(recipe, data, tmp_path_factory.mktemp("runs"), "all")["run"])
    write_predictions(predict_split(run, "test", data), run / "test.csv")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy" / trained.name))


def collect_run(run: Path, _: Path, out: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "latest_version", lambda client, ref: ref)
        patch.setattr(
            collect,
            "download_output",
            lambda client, ref, staging, say: shutil.copytree(run, staging / run.name),
        )
        return collect.collect_folds(NO_CLIENT, REF, out / "collected")


READERS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "predict": lambda run, data, out: predict_split(run, "test", data),
    "load": lambda run, data, out: kit.load(run),
    "oof": lambda run, data, out: Run.open(run).oof,
    "train": lambda run, data, out: train_recipe(Run.open(run).recipe, data, run.parent, "all"),
    "ensemble": lambda run, data, out: kit.ensemble([run]),
    "fit": lambda run, data, out: kit.ensemble(fit=[run], truth=data / "train.parquet"),
    "calibrate": lambda run, data, out: kit.calibrate(run / "oof.csv", data / "train.parquet"),
    "report": lambda run, data, out: gather_inputs([run], data),
    "push": lambda run, data, out: publish_dataset(NO_CLIENT, run),
    "dry push": lambda run, data, out: parse_sources([run], "me", as_dataset=True),
    "collect": collect_run,
}


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "config.json", "valid.csv"]
)
@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_is_named_by_every_reader(
    reader: str, name: str, run: Path, data: Path, tmp_path: Path
):
    (run / "fold1" / name).unlink()
    with pytest.raises(RunError, match=rf"fold1/{name}: this file of the run is missing"):
        READERS[reader](run, data, tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "valid.csv"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_cut_short_is_named_by_every_reader(
    reader: str, name: str, run: Path, data: Path, tmp_path: Path
):
    file = run / "fold1" / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunError, match=rf"fold1/{name} (has changed|is incomplete)"):
        READERS[reader](run, data, tmp_path)


def test_a_pointer_in_place_of_weights_is_named_for_what_it_is(run: Path, data: Path):
    (run / "fold0/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RunError, match="Git LFS pointer"):
        predict_split(run, "test", data)


@pytest.mark.parametrize("reader", ["ensemble", "calibrate", "report", "push"])
def test_an_out_of_fold_file_cut_short_is_named(reader: str, run: Path, data: Path, tmp_path: Path):
    lines = (run / "oof.csv").read_text().splitlines(keepends=True)
    (run / "oof.csv").write_text("".join(lines[:-5]))
    with pytest.raises(RunError, match=r"oof\.csv has changed"):
        READERS[reader](run, data, tmp_path)


def test_a_whole_run_passes_and_is_hashed_once(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[Path] = []
    original = kit.fold_dir.file_sha256
    monkeypatch.setattr(
        kit.fold_dir, "file_sha256", lambda path: read.append(path) or original(path)
    )
    for reader in ("predict", "ensemble", "report", "dry push", "collect"):
        READERS[reader](run, data, tmp_path)
    weights = [path for path in read if path.suffix == ".safetensors" and run in path.parents]
    assert len(weights) == len({*weights}) == 3


def test_a_baseline_lists_its_predictions(data: Path, tmp_path: Path):
    folder = Path(run_baseline("length", data, tmp_path)["run"])
    file = folder / "holdout/valid.csv"
    Run.open(folder).check_files()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunError, match="has changed"):
        gather_inputs([folder], data)
