"""Check that a run holds its origin, knows its finished folds, and refuses what does not match."""

from pathlib import Path

import numpy as np
import pytest

from kit.errors import RunError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.atomic import write_json
from kit.task import HOLDOUT, ID

ORIGIN = {"data": "abc123", "text": "unicode", "split": "grouped", "folds": 3, "kit": "0.1"}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("tiny-roberta", ["train.lr=1e-4"])


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Run:
    return Run.create(tmp_path / "runs", recipe, ORIGIN)


def finish_folds(run: Run, *folds: int | str) -> None:
    """Write the file that makes a fold finished."""
    for fold in folds:
        write_json(run.fold(fold).metrics_path, {"log_loss": 1.0, "fold": fold})


def test_a_new_run_holds_its_recipe_and_origin(run: Run, recipe: Recipe):
    assert run.name == recipe.run_name
    assert run.recipe == recipe
    assert run.origin.items() >= ORIGIN.items()
    assert sorted(path.name for path in run.path.iterdir()) == ["origin.json", "recipe.toml"]


def test_the_same_recipe_on_the_same_data_is_the_same_run(run: Run, recipe: Recipe):
    finish_folds(run, 0)

    again = Run.create(run.path.parent, recipe, ORIGIN | {"kit": "0.2"})
    assert again == run
    assert again.origin == run.origin
    assert again.fold(0).is_finished


def test_a_recipe_with_another_value_is_another_run(run: Run):
    other = Run.create(run.path.parent, load_recipe("tiny-roberta", ["train.lr=2e-4"]), ORIGIN)
    assert other.path != run.path


def test_different_data_is_refused(run: Run, recipe: Recipe):
    with pytest.raises(RunError, match="trained on different data"):
        Run.create(run.path.parent, recipe, ORIGIN | {"data": "def456"})
    with pytest.raises(RunError, match="trained on different data"):
        run.check_data("def456")
    run.check_data("abc123")


def test_an_edited_recipe_is_refused(run: Run, recipe: Recipe):
    edited = run.recipe_path.read_text().replace("0.0001", "0.0002", 1)
    run.recipe_path.write_text(edited)
    with pytest.raises(RunError, match="was edited"):
        Run.create(run.path.parent, recipe, ORIGIN)


def test_a_run_is_opened_by_its_folder(run: Run, monkeypatch: pytest.MonkeyPatch):
    assert Run.open(run.path) == run
    assert Run.open(str(run.path)) == run

    monkeypatch.chdir(run.path)
    assert Run.open(".").name == run.path.name


def test_a_path_that_is_no_run_has_those_proposed_that_may_be_meant(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not a run directory") as caught:
        Run.open(run.path.parent / "nothing")
    assert caught.value.hint == f"Runs in {run.path.parent}: {run.name}."

    # The name alone, a part of it, and one with a slip.
    for typed in (run.name, run.name[:12], Path("runs") / run.name.replace("roberta", "robrta")):
        with pytest.raises(RunError, match="not a run directory") as caught:
            Run.open(typed)
        assert caught.value.hint == f"Did you mean runs/{run.name}? Runs in runs: {run.name}."

    # Of many runs, the command is named that lists them.
    for number in range(4):
        write_json(Path("runs") / f"other-{number}" / "origin.json", {})
    with pytest.raises(RunError, match="not a run directory") as caught:
        Run.open(run.name)
    assert caught.value.hint == f"Did you mean runs/{run.name}? `kit runs` lists those in runs."

    with pytest.raises(RunError, match="not a run directory") as caught:
        Run.open(run.recipe_path)
    assert f"Did you mean {run.path}?" in caught.value.hint


def test_without_any_run_the_command_that_makes_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "nowhere" / "x", ".", "typo"):
        with pytest.raises(RunError, match="not a run directory") as caught:
            Run.open(path)
        assert caught.value.hint == "`kit train` creates one."


def test_a_fold_is_finished_when_its_metrics_exist(run: Run):
    run.fold(1).path.mkdir()
    run.fold(1).predictions_path.touch()
    assert not run.fold(1).is_finished

    finish_folds(run, 1)
    assert run.fold(1).is_finished
    assert not run.fold(0).is_finished
    assert not run.fold(HOLDOUT).is_finished


def test_finished_folds_are_the_holdout_and_then_the_others_by_number(run: Run):
    finish_folds(run, 10, 2, HOLDOUT, 0)
    for stray in ("fold", "fold-1", "foldx", "checkpoints"):
        write_json(run.path / stray / "metrics.json", {})
    write_json(run.metrics_path, {"parts": {}})

    assert [fold.name for fold in run.finished()] == ["holdout", "fold0", "fold2", "fold10"]
    assert run.fold(10).metrics["fold"] == 10


def test_the_models_are_all_folds_or_else_the_holdout(run: Run):
    with pytest.raises(RunError, match="no fold of it has finished training") as caught:
        run.models()
    assert "kit train" in caught.value.hint

    finish_folds(run, HOLDOUT)
    assert run.models() == [run.fold(HOLDOUT)]
    finish_folds(run, 1, 0)
    assert run.models() == [run.fold(HOLDOUT)], "two folds of three do not replace the holdout"
    finish_folds(run, 2)
    assert run.models() == [run.fold(0), run.fold(1), run.fold(2)]


def test_the_models_are_the_finished_folds_without_a_holdout(run: Run):
    finish_folds(run, 1)
    assert run.models() == [run.fold(1)]


def test_the_hint_continues_the_fold_that_was_begun(run: Run):
    run.fold(2).path.mkdir(parents=True)
    with pytest.raises(RunError) as caught:
        run.models()
    assert caught.value.hint.endswith("--fold 2 --resume`.")
    run.fold(2).path.rmdir()
    run.fold(HOLDOUT).path.mkdir()
    with pytest.raises(RunError) as caught:
        run.models()
    assert "--fold" not in caught.value.hint


def test_test_predictions_are_outdated_when_other_models_predict(run: Run):
    predictions = make_predictions(np.arange(4), np.full((4, 3), 1 / 3))
    finish_folds(run, 0)
    assert not run.outdated_test
    run.write_test(predictions, run.models())
    assert not run.outdated_test

    finish_folds(run, 1, 2)
    assert "is of fold0, and now the models of fold0, fold1, fold2 predict" in run.outdated_test
    run.write_test(predictions, run.models())
    assert not run.outdated_test

    # A file that came from elsewhere belongs to no record.
    finish_folds(run, HOLDOUT)
    run.fold(2).metrics_path.unlink()
    assert run.outdated_test
    write_predictions(predictions.iloc[::-1], run.test_path)
    assert not run.outdated_test


def test_the_summary_joins_the_folds(run: Run):
    for fold, rows in ((0, 2), (1, 1), (2, 1)):
        ids = np.arange(rows) + 10 * fold
        frame = make_predictions(ids, np.full((rows, 3), 1 / 3))
        write_predictions(frame, run.fold(fold).predictions_path)
        metrics = {"log_loss": float(fold), "accuracy": 0.5, "valid_rows": rows}
        write_json(run.fold(fold).metrics_path, metrics)

    summary = run.summarise()
    assert summary["oof"] == {"log_loss": 0.75, "accuracy": 0.5, "rows": 4}
    assert read_predictions(run.oof_path)[ID].tolist() == [0, 1, 10, 20] == run.oof[ID].tolist()


def test_the_same_row_in_two_folds_is_refused(run: Run):
    for fold in range(3):
        frame = make_predictions(np.array([7]), np.full((1, 3), 1 / 3))
        write_predictions(frame, run.fold(fold).predictions_path)
        write_json(run.fold(fold).metrics_path, {"log_loss": 1.0, "valid_rows": 1})
    with pytest.raises(RunError, match="id 7 is in the validation rows of two folds"):
        _ = run.oof


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_json_file_is_named(run: Run, content: bytes):
    finish_folds(run, 0)
    run.origin_path.write_bytes(content)
    run.fold(0).metrics_path.write_bytes(content)

    with pytest.raises(RunError, match=r"origin\.json: cannot be read"):
        _ = run.origin
    with pytest.raises(RunError, match=r"metrics\.json: cannot be read"):
        _ = run.metrics
