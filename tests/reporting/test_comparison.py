"""Check that every model is scored on the same rows, with the numbers a user would compute."""

from pathlib import Path

import numpy as np
import pytest
from compare_runs import compare
from quick_recipe import QUICK

from kit.errors import DataError, RunError
from kit.evaluation.metrics import log_loss
from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth
from kit.predict import predict_split
from kit.predictions import read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.reporting.comparison import comparison_columns, comparison_rows
from kit.run import Run
from kit.task import ID
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=2")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A holdout run with test predictions."""
    recipe = load_recipe("tiny-electra", SHORT)
    folder = Path(train_recipe(recipe, data, tmp_path_factory.mktemp("runs"))["run"])
    write_predictions(predict_split(folder, "test", data), folder / "test.csv")
    return folder


def test_every_model_is_scored_on_the_same_rows(run: Path, data: Path, raw: Path):
    frames = [("blend", run / "test.csv")]
    comparison = compare([run], data, frames=frames, truth=raw / "truth.csv")
    names = [line.name for line in comparison.lines]
    assert names == ["uniform", "class prior", "Bayes floor", run.name, "blend"]

    by_name = {line.name: line for line in comparison.lines}
    valid_rows = {line.valid.rows for line in comparison.lines if line.valid}
    assert valid_rows == {by_name[run.name].valid.rows}
    assert {line.test.rows for line in comparison.lines} == {60}
    assert by_name["uniform"].test.log_loss == pytest.approx(np.log(3))
    assert by_name["blend"].valid is None
    assert by_name["blend"].test == by_name[run.name].test
    assert by_name["Bayes floor"].test.log_loss < by_name["class prior"].test.log_loss


def test_the_log_loss_lies_within_its_interval(run: Path, data: Path, raw: Path):
    line = compare([run], data, truth=raw / "truth.csv").lines[-1]
    test = align_to_truth(read_predictions(run / "test.csv"), read_truth(raw / "truth.csv"), "test")
    assert line.test.log_loss == pytest.approx(log_loss(*test), abs=1e-12)

    frame = read_predictions(run / "holdout" / "valid.csv")
    truth = restrict_truth(read_truth(data / "train.parquet"), frame)
    valid = align_to_truth(frame, truth, "valid")
    assert line.valid.log_loss == pytest.approx(log_loss(*valid), abs=1e-12)
    for figures in (line.test, line.valid):
        assert figures.low < figures.log_loss < figures.high


def test_the_class_prior_ignores_the_labels_of_the_holdout(run: Path, data: Path):
    line = next(line for line in compare([run], data).lines if line.name == "class prior")
    truth = read_truth(data / "train.parquet")
    holdout = truth[ID].isin(read_predictions(run / "holdout" / "valid.csv")[ID])
    prior = np.bincount(truth[~holdout]["label"], minlength=3) / (~holdout).sum()
    labels = truth[holdout]["label"].to_numpy()
    assert line.valid.log_loss == pytest.approx(-np.log(prior[labels]).mean(), abs=1e-12)


def test_test_columns_stay_empty_without_labels(run: Path, data: Path):
    comparison = compare([run], data)
    assert all(line.test is None for line in comparison.lines)
    rows, _ = comparison_rows(comparison)
    assert rows[0][3] == ""


def test_the_table_has_a_cell_for_every_column(run: Path, data: Path, raw: Path):
    comparison = compare([run], data, truth=raw / "truth.csv")
    rows, references = comparison_rows(comparison)
    assert {len(row) for row in rows + references} == {len(comparison_columns(comparison))}
    assert len(rows + references) == len(comparison.lines)
    assert {row[0] for row in references} == {"uniform", "class prior", "Bayes floor"}


def test_a_frame_of_other_rows_is_refused(run: Path, data: Path, raw: Path, tmp_path: Path):
    frame = read_predictions(run / "test.csv").assign(**{ID: range(60)})
    write_predictions(frame, tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"other\.csv: its 60 ids are neither"):
        compare([run], data, frames=[("other", tmp_path / "other.csv")], truth=raw / "truth.csv")


def test_an_unfinished_run_is_left_out_and_named(run: Path, data: Path, tmp_path: Path):
    begun = Run.create(tmp_path, load_recipe("tiny-deberta"), Run.open(run).origin)
    comparison = compare([begun.path, run], data)
    assert [each.name for each in comparison.left_out] == [begun.name]
    assert comparison.lines[-1].name == run.name
    with pytest.raises(RunError, match="no fold of it has finished"):
        compare([begun.path], data)


def test_out_of_fold_runs_are_compared_on_all_rows(data: Path, tmp_path: Path):
    result = train_recipe(load_recipe("tiny-roberta", SHORT), data, tmp_path, "all")
    comparison = compare([result["run"]], data)
    valid = comparison.lines[-1].valid
    assert comparison.validation == "out-of-fold"
    assert valid.log_loss == pytest.approx(result["oof"]["log_loss"], abs=1e-12)
    assert valid.rows == len(read_truth(data / "train.parquet"))
