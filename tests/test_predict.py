"""Prediction from runs: the right rows, in their order, by the right models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_recipe import QUICK

from kit.data.dataset import Dataset
from kit.errors import DataError, RunError
from kit.predict import predict_input, predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import CLASSES, ID
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=3")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fold and the holdout of one recipe with the head that is not symmetric, three steps each."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = load_recipe("tiny-roberta", (*SHORT, "model.head=fusion"))
    train_recipe(recipe, data, runs, "all")
    return Path(train_recipe(recipe, data, runs)["run"])


def test_test_predictions_are_in_the_order_of_the_test_file(run: Path, data: Path, raw: Path):
    predictions = predict_split(run, "test", data)
    assert predictions[ID].tolist() == pd.read_csv(raw / "test.csv", usecols=[ID])[ID].tolist()


def test_a_file_gives_what_the_processed_rows_give(run: Path, data: Path, raw: Path):
    ours = predict_input(run, raw / "test.csv")
    pd.testing.assert_frame_equal(ours, predict_split(run, "test", data), rtol=0, atol=1e-6)


def test_reordered_rows_give_reordered_predictions(run: Path, raw: Path, tmp_path: Path):
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    rows.iloc[::-1].to_csv(tmp_path / "reversed.csv", index=False)
    rows.iloc[[7]].to_csv(tmp_path / "one.csv", index=False)
    forwards = predict_input(run, raw / "test.csv")
    backwards = predict_input(run, tmp_path / "reversed.csv").iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(forwards, backwards, rtol=0, atol=1e-6)
    one = predict_input(run, tmp_path / "one.csv")
    np.testing.assert_allclose(one.to_numpy(), forwards.iloc[[7]].to_numpy(), atol=1e-6)


def test_test_predictions_average_the_folds(run: Path, data: Path, tmp_path: Path):
    """The mean of three runs that each have one fold only is the whole run's prediction."""
    import shutil

    members = []
    for fold in range(3):
        part = shutil.copytree(
            run, tmp_path / f"only-{fold}", ignore=shutil.ignore_patterns("holdout", "fold*")
        )
        shutil.copytree(run / f"fold{fold}", part / f"fold{fold}")
        members.append(predict_split(part, "test", data)[list(CLASSES)].to_numpy())
    whole = predict_split(run, "test", data)[list(CLASSES)].to_numpy()
    np.testing.assert_allclose(np.mean(members, 0), whole, atol=1e-12)


def test_validation_predictions_are_those_of_training(run: Path, data: Path):
    again = predict_split(run, "valid", data)
    pd.testing.assert_frame_equal(
        again, read_predictions(run / "holdout" / "valid.csv"), rtol=0, atol=1e-9
    )


def test_out_of_fold_predictions_are_those_of_training(run: Path, data: Path, processed: Dataset):
    again = predict_split(run, "oof", data)
    assert again[ID].tolist() == processed.train()[ID].to_pylist()
    stored = read_predictions(run / "oof.csv").set_index(ID).loc[again[ID]].reset_index()
    pd.testing.assert_frame_equal(again, stored, rtol=0, atol=1e-9)


def test_swapping_averages_both_orders(run: Path, raw: Path, tmp_path: Path):
    """Averaged predictions of swapped rows are the swapped predictions; single-order ones are not."""
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    swapped = rows.rename(columns={"response_a": "response_b", "response_b": "response_a"})
    swapped.to_csv(tmp_path / "swapped.csv", index=False)
    permuted = [CLASSES[1], CLASSES[0], CLASSES[2]]
    for swap, equal in ((True, True), (False, False)):
        straight = predict_input(run, raw / "test.csv", swap=swap)[permuted].to_numpy()
        other = predict_input(run, tmp_path / "swapped.csv", swap=swap)[list(CLASSES)].to_numpy()
        assert np.allclose(straight, other, atol=1e-6) is equal


def test_progress_ends_at_all_rows_of_all_models(run: Path, data: Path, processed: Dataset):
    heard: list[tuple[int, int]] = []
    predict_split(run, "test", data, progress=lambda done, total: heard.append((done, total)))
    everything = 3 * processed.test().num_rows
    assert heard[-1] == (everything, everything)


def test_folds_that_are_missing_are_named(data: Path, tmp_path: Path):
    run = Path(train_recipe(load_recipe("tiny-electra", SHORT), data, tmp_path, "1")["run"])
    with pytest.raises(RunError, match=r"needs fold 0, 2[^0-9]"):
        predict_split(run, "oof", data)
    with pytest.raises(RunError, match="holdout"):
        predict_split(run, "valid", data)
    assert len(predict_split(run, "test", data))


def test_an_unfinished_run_says_so(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    run = Run.create(
        tmp_path,
        recipe,
        {"data": "x", "text": "unicode", "split": "grouped", "folds": 3, "kit": "0"},
    )
    with pytest.raises(RunError, match="trained on different data"):
        predict_split(run.path, "test", data)
    with pytest.raises(RunError, match="no fold of it has finished training"):
        predict_input(run.path, data / "none.csv")


def test_something_else_than_a_run_lists_the_runs(run: Path, data: Path):
    with pytest.raises(RunError, match=run.name):
        predict_split(run.parent / "nonsense", "test", data)


def test_an_input_without_rows_is_an_error(run: Path, tmp_path: Path):
    (tmp_path / "empty.csv").write_text("id,prompt,response_a,response_b\n")
    with pytest.raises(DataError, match=r"empty\.csv"):
        predict_input(run, tmp_path / "empty.csv")


def test_damaged_weights_are_an_error_that_names_them(run: Path, raw: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "damaged")
    weights = copy / "fold0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RunError, match="fold0"):
        predict_input(copy, raw / "test.csv")


def test_two_processes_predict_what_one_does(run: Path, raw: Path, tmp_path: Path):
    """Under torchrun each process takes every second row; only the first writes and speaks."""
    out = tmp_path / "two.csv"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += ["-m", "kit", "predict", str(run), "--input", str(raw / "test.csv"), "-o", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("60 rows in") == 1
    pd.testing.assert_frame_equal(
        read_predictions(out), predict_input(run, raw / "test.csv"), rtol=0, atol=1e-6
    )
