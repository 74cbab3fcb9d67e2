"""Check that saved classical models predict anywhere what they predicted when they were fitted."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kit
from kit.baselines.models import MODELS, baseline_run_name
from kit.baselines.run import run_baseline
from kit.baselines.saved import ClassicalFold
from kit.errors import RunError
from kit.fold_dir import FoldDir
from kit.kaggle.sources import parse_sources
from kit.predict import predict_input, predict_split
from kit.predictions import read_predictions
from kit.run import Run
from kit.storage.atomic import write_json

# What a process does that has never seen the data folder or the fits.
PREDICT = """
import sys
from pathlib import Path
from kit.predict import predict_input
from kit.predictions import write_predictions
runs, file, out = map(Path, sys.argv[1:])
for run in runs.iterdir():
    write_predictions(predict_input(run, file), out / f"{run.name}.csv")
print("torch" in sys.modules)
"""


def test_trees_can_be_fitted_whatever_backend_the_shell_names_and_without_a_home(tmp_path: Path):
    """LightGBM imports matplotlib, which refuses unknown names, and some versions a lost home."""
    code = "import kit.baselines.trees as t; print(t.import_lightgbm().__version__)"
    nobody = "import pwd\ndef unknown(_):\n    raise KeyError\npwd.getpwuid = unknown\n"
    (tmp_path / "sitecustomize.py").write_text(nobody)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "MPLBACKEND": "nope",
            "PYTHONPATH": f"{tmp_path}:{Path(kit.__file__).parents[1]}",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_fresh_process_predicts_the_same_bits_without_torch(
    runs: Path, raw: Path, tmp_path: Path
):
    command = [sys.executable, "-c", PREDICT, str(runs), str(raw / "test.csv"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    for name in MODELS:
        fitted = (runs / baseline_run_name(name) / "test.csv").read_bytes()
        assert (tmp_path / f"{baseline_run_name(name)}.csv").read_bytes() == fitted


@pytest.mark.parametrize("name", list(MODELS))
def test_out_of_fold_predictions_are_those_of_the_fit(name: str, runs: Path, data: Path):
    run = runs / baseline_run_name(name)
    again = predict_split(run, "oof", data).set_index("id")
    fitted = read_predictions(run / "oof.csv").set_index("id").loc[again.index]
    pd.testing.assert_frame_equal(again, fitted, check_exact=True)


def test_loaded_models_predict_frames_in_either_order(runs: Path, raw: Path):
    frame = pd.read_csv(raw / "test.csv", keep_default_na=False)
    swapped = frame.rename(columns={"response_a": "response_b", "response_b": "response_a"})
    predictor = kit.load([runs / baseline_run_name("boosted"), runs / baseline_run_name("tfidf")])
    given = predictor.predict_proba(frame).set_index("id")
    turned = predictor.predict_proba(swapped).set_index("id")
    turned.columns = ["winner_model_b", "winner_model_a", "winner_tie"]
    np.testing.assert_allclose(turned[given.columns], given, rtol=1e-5)


def test_train_takes_the_name_of_a_classical_model(data: Path, runs: Path, tmp_path: Path):
    run = kit.train("length", data=data, runs=tmp_path, fold="all")
    assert (run.path / "oof.csv").read_bytes() == (
        runs / baseline_run_name("length") / "oof.csv"
    ).read_bytes()
    with pytest.raises(kit.errors.KitError, match="boosted is a classical model, which has no"):
        kit.train("boosted", overrides={"train.lr": 1}, data=data, runs=tmp_path)


def test_settings_decide_the_name_of_a_run(monkeypatch: pytest.MonkeyPatch):
    name = baseline_run_name("boosted")
    monkeypatch.setitem(MODELS["boosted"].settings, "learning_rate", 0.2)
    assert baseline_run_name("boosted") != name


def test_a_run_of_any_name_predicts_and_is_not_continued(runs: Path, data: Path, tmp_path: Path):
    """Kit 0.1.0 named it baseline-length."""
    new = runs / baseline_run_name("length")
    old = Path(shutil.copytree(new, tmp_path / "baseline-length"))
    pd.testing.assert_frame_equal(
        predict_split(old, "test", data), read_predictions(new / "test.csv"), check_exact=True
    )
    run_baseline("length", data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline-length", new.name]


def test_a_run_can_be_published(runs: Path):
    (source,) = parse_sources([runs / baseline_run_name("boosted")], "me", as_dataset=True)
    assert (source.kind, source.runs) == ("dataset", (baseline_run_name("boosted"),))


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of a run of trees that a test may damage."""
    return Path(
        shutil.copytree(
            runs / baseline_run_name("boosted"), tmp_path / baseline_run_name("boosted")
        )
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize("name", ["trees.txt", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_model_is_refused(
    name: str, damage: Callable[[Path], None], run: Path, raw: Path
):
    damage(run / "fold1" / name)
    with pytest.raises(RunError, match=rf"fold1/{name}(: this file| has changed| does not)"):
        predict_input(run, raw / "test.csv")
    with pytest.raises(RunError, match=f"fold1/{name}"):
        kit.load(run)

    # The model refuses it too, before LightGBM sees the text.
    with pytest.raises(RunError, match="fold1"):
        ClassicalFold.load(run / "fold1")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "written by a newer kit"),
        ("features", {"sides": ["charm"], "pair": []}, "features that this kit does not compute"),
        ("model", "tfidf", "not a classical model of kit"),
        ("model", "oracle", "not a classical model of kit"),
        ("files", {}, "not a classical model of kit"),
        ("kind", "quantum", "its kind is 'quantum'"),
    ],
)
def test_another_configuration_is_refused(
    key: str, value: object, message: str, run: Path, raw: Path
):
    fold = FoldDir(run / "fold0")
    write_json(
        fold.path / "config.json",
        json.loads((fold.path / "config.json").read_text()) | {key: value},
    )
    write_json(fold.metrics_path, fold.metrics | {"files": fold.file_digests()})
    with pytest.raises(RunError, match=message):
        predict_input(run, raw / "test.csv")


def test_predictions_of_an_older_kit_are_refused_with_the_way_out(
    run: Path, raw: Path, data: Path, tmp_path: Path
):
    for fold in Run.open(run).finished():
        for name in ("trees.txt", "model.safetensors", "config.json"):
            (fold.path / name).unlink()
        write_json(fold.metrics_path, fold.metrics | {"files": fold.file_digests()})

    # They can still be compared and blended.
    assert len(Run.open(run).oof) == len(read_predictions(run / "oof.csv"))
    expected = "it keeps predictions and no model"
    for use in (
        lambda: predict_input(run, raw / "test.csv"),
        lambda: kit.load(run),
        lambda: run_baseline("boosted", data, tmp_path, "all"),
    ):
        with pytest.raises(RunError, match=expected) as caught:
            use()
        assert "run `kit baseline boosted --fold all` again" in caught.value.hint
