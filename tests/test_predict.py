"""Check that predictions from runs are of the right rows, in their order, by the right models."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_recipe import QUICK

from kit.data.dataset import Dataset
from kit.data.preprocess import prepare_input
from kit.errors import DataError, RunError
from kit.model.pair_model import PairModel
from kit.predict import RunPredictor, predict_input, predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import CLASSES, HOLDOUT, ID
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=3")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train all folds and the holdout of a recipe whose head is not symmetric, three steps each."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = load_recipe("tiny-roberta", (*SHORT, "model.head=fusion"))
    train_recipe(recipe, data, runs, "all")
    return Run.open(train_recipe(recipe, data, runs)["run"])


def test_test_predictions_are_in_the_order_of_the_test_file(run: Run, data: Path, raw: Path):
    predictions = predict_split(run.path, "test", data)
    assert predictions[ID].tolist() == pd.read_csv(raw / "test.csv", usecols=[ID])[ID].tolist()


def test_a_csv_file_is_predicted_like_the_processed_rows(run: Run, data: Path, raw: Path):
    from_file = predict_input(run.path, raw / "test.csv")
    from_processed = predict_split(run.path, "test", data)
    pd.testing.assert_frame_equal(from_file, from_processed, rtol=0, atol=1e-6)


def test_reordered_rows_give_reordered_predictions(run: Run, raw: Path, tmp_path: Path):
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    rows.iloc[::-1].to_csv(tmp_path / "reversed.csv", index=False)
    rows.iloc[[7]].to_csv(tmp_path / "one.csv", index=False)

    forwards = predict_input(run.path, raw / "test.csv")
    backwards = predict_input(run.path, tmp_path / "reversed.csv").iloc[::-1]
    backwards = backwards.reset_index(drop=True)
    pd.testing.assert_frame_equal(forwards, backwards, rtol=0, atol=1e-6)

    one = predict_input(run.path, tmp_path / "one.csv")
    np.testing.assert_allclose(one.to_numpy(), forwards.iloc[[7]].to_numpy(), atol=1e-6)


def test_test_predictions_are_the_mean_of_the_folds(run: Run, data: Path, tmp_path: Path):
    members = []
    for number in range(3):
        # A run of this fold alone.
        ignored = shutil.ignore_patterns("holdout", "fold*")
        single = shutil.copytree(run.path, tmp_path / f"only-{number}", ignore=ignored)
        shutil.copytree(run.fold(number).path, single / f"fold{number}")
        members.append(predict_split(single, "test", data)[list(CLASSES)].to_numpy())

    together = predict_split(run.path, "test", data)[list(CLASSES)].to_numpy()
    np.testing.assert_allclose(np.mean(members, 0), together, atol=1e-12)


def test_validation_predictions_are_those_of_training(run: Run, data: Path):
    again = predict_split(run.path, "valid", data)
    stored = run.fold(HOLDOUT).predictions
    pd.testing.assert_frame_equal(again, stored, rtol=0, atol=1e-9)


def test_out_of_fold_predictions_are_those_of_training(run: Run, data: Path, processed: Dataset):
    again = predict_split(run.path, "oof", data)
    assert again[ID].tolist() == processed.train()[ID].to_pylist()

    stored = read_predictions(run.oof_path).set_index(ID).loc[again[ID]].reset_index()
    pd.testing.assert_frame_equal(again, stored, rtol=0, atol=1e-9)


def test_swapped_rows_give_swapped_predictions_only_with_both_orders(
    run: Run, raw: Path, tmp_path: Path
):
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    swapped = rows.rename(columns={"response_a": "response_b", "response_b": "response_a"})
    swapped.to_csv(tmp_path / "swapped.csv", index=False)

    permuted = [CLASSES[1], CLASSES[0], CLASSES[2]]
    for swap, is_equal in ((True, True), (False, False)):
        given = predict_input(run.path, raw / "test.csv", swap=swap)
        other = predict_input(run.path, tmp_path / "swapped.csv", swap=swap)
        expected = given[permuted].to_numpy()
        assert np.allclose(expected, other[list(CLASSES)].to_numpy(), atol=1e-6) is is_equal


def test_progress_ends_at_all_rows_of_all_models(run: Run, data: Path, processed: Dataset):
    reports: list[tuple[int, int]] = []
    predict_split(
        run.path, "test", data, progress=lambda done, total: reports.append((done, total))
    )
    total = 3 * processed.test().num_rows
    assert reports[-1] == (total, total)


def test_missing_folds_are_named(data: Path, tmp_path: Path):
    path = train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, "1")["run"]
    with pytest.raises(RunError, match=r"needs fold0, fold2, not finished yet"):
        predict_split(path, "oof", data)
    with pytest.raises(RunError, match="holdout"):
        predict_split(path, "valid", data)
    assert len(predict_split(path, "test", data))


def test_an_unfinished_run_is_refused(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    origin = {"data": "x", "text": "unicode", "split": "grouped", "folds": 3, "kit": "0"}
    run = Run.create(tmp_path, recipe, origin)
    with pytest.raises(RunError, match="trained on different data"):
        predict_split(run.path, "test", data)
    with pytest.raises(RunError, match="no fold of it has finished training"):
        predict_input(run.path, data / "none.csv")


def test_a_path_that_is_no_run_lists_the_runs(run: Run, data: Path):
    with pytest.raises(RunError, match=run.name):
        predict_split(run.path.parent / "nonsense", "test", data)


def test_an_input_without_rows_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "empty.csv").write_text("id,prompt,response_a,response_b\n")
    with pytest.raises(DataError, match=r"empty\.csv"):
        predict_input(run.path, tmp_path / "empty.csv")


def test_damaged_weights_are_named(run: Run, raw: Path, tmp_path: Path):
    copy = shutil.copytree(run.path, tmp_path / "damaged")
    weights = copy / "fold0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RunError, match="fold0"):
        predict_input(copy, raw / "test.csv")


def test_a_predictor_keeps_its_models_loaded(run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch):
    expected = predict_input(run.path, raw / "test.csv")[list(CLASSES)].to_numpy()
    predictor = RunPredictor(run).load()
    table = prepare_input(raw / "test.csv", run.option("text", str))

    # From here on, loading a model would fail.
    monkeypatch.setattr(PairModel, "from_pretrained", None)
    for _ in range(2):
        np.testing.assert_allclose(predictor.predict_table(table), expected, atol=1e-12)


def test_two_processes_predict_the_same_as_one(run: Run, raw: Path, tmp_path: Path):
    """Under torchrun each process predicts every second row; only the first writes and reports."""
    output = tmp_path / "two.csv"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    predict = ("-m", "kit", "predict", str(run.path), "--input", str(raw / "test.csv"))
    done = subprocess.run(
        [sys.executable, *torchrun, *predict, "-o", str(output)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("60 rows in") == 1

    expected = predict_input(run.path, raw / "test.csv")
    pd.testing.assert_frame_equal(read_predictions(output), expected, rtol=0, atol=1e-6)
