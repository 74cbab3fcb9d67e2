"""A run directory says what it is, what is done in it, and refuses what does not belong with it."""

from pathlib import Path

import pytest

from kit.errors import RunError
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.atomic import write_json
from kit.task import HOLDOUT

ORIGIN = {"data": "abc123", "text": "unicode", "split": "grouped", "folds": 3, "kit": "0.1"}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("tiny-roberta", ["train.lr=1e-4"])


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Run:
    return Run.create(tmp_path / "runs", recipe, ORIGIN)


def finish(run: Run, *folds: int | str) -> None:
    for fold in folds:
        write_json(run.fold(fold).metrics_path, {"log_loss": 1.0, "fold": fold})


def test_a_new_run_explains_itself(run: Run, recipe: Recipe):
    assert run.name == recipe.run_name
    assert run.recipe == recipe
    assert run.origin.items() >= ORIGIN.items()
    assert sorted(p.name for p in run.path.iterdir()) == ["origin.json", "recipe.toml"]


def test_the_same_recipe_on_the_same_data_is_the_same_run(run: Run, recipe: Recipe):
    finish(run, 0)
    again = Run.create(run.path.parent, recipe, ORIGIN | {"kit": "0.2"})
    assert again == run
    assert again.origin == run.origin
    assert again.fold(0).is_finished


def test_an_overridden_recipe_is_another_run(run: Run):
    other = Run.create(run.path.parent, load_recipe("tiny-roberta", ["train.lr=2e-4"]), ORIGIN)
    assert other.path != run.path


def test_other_rows_are_refused(run: Run, recipe: Recipe):
    with pytest.raises(RunError, match="trained on different data"):
        Run.create(run.path.parent, recipe, ORIGIN | {"data": "def456"})
    with pytest.raises(RunError, match="trained on different data"):
        run.check_data("def456")
    run.check_data("abc123")


def test_an_edited_recipe_is_refused(run: Run, recipe: Recipe):
    edited = (run.path / "recipe.toml").read_text().replace("0.0001", "0.0002", 1)
    (run.path / "recipe.toml").write_text(edited)
    with pytest.raises(RunError, match="was edited"):
        Run.create(run.path.parent, recipe, ORIGIN)


def test_a_run_is_opened_by_its_folder(run: Run, monkeypatch: pytest.MonkeyPatch):
    assert Run.open(run.path) == run
    assert Run.open(str(run.path)) == run
    monkeypatch.chdir(run.path)
    assert Run.open(".").name == run.path.name


def test_what_is_not_a_run_is_answered_with_the_runs_there_are(run: Run, tmp_path: Path):
    with pytest.raises(RunError, match="not a run directory") as caught:
        Run.open(run.path.parent / "typo")
    assert run.name in caught.value.hint
    with pytest.raises(RunError, match="not a run directory") as caught:
        Run.open(tmp_path / "nowhere" / "x")
    assert "kit train" in caught.value.hint
    with pytest.raises(RunError, match="not a run directory"):
        Run.open(run.path / "recipe.toml")


def test_a_part_is_done_when_its_metrics_are_there(run: Run):
    run.fold(1).path.mkdir()
    run.fold(1).predictions_path.touch()
    assert not run.fold(1).is_finished
    finish(run, 1)
    assert run.fold(1).is_finished
    assert not run.fold(0).is_finished
    assert not run.fold(HOLDOUT).is_finished


def test_parts_come_the_holdout_first_and_then_by_number(run: Run):
    finish(run, 10, 2, HOLDOUT, 0)
    for stray in ("fold", "fold-1", "foldx", "checkpoints"):
        write_json(run.path / stray / "metrics.json", {})
    write_json(run.path / "metrics.json", {"parts": {}})
    assert [fold.name for fold in run.finished()] == ["holdout", "fold0", "fold2", "fold10"]
    assert run.fold(10).metrics["fold"] == 10


def test_all_folds_are_predicted_with_before_the_holdout(run: Run):
    with pytest.raises(RunError, match="no fold of it has finished training") as caught:
        run.models()
    assert "kit train" in caught.value.hint
    finish(run, HOLDOUT)
    assert run.models() == [run.fold(HOLDOUT)]
    finish(run, 1, 0)
    assert run.models() == [run.fold(HOLDOUT)], "two folds of three do not stand for the run"
    finish(run, 2)
    assert run.models() == [run.fold(0), run.fold(1), run.fold(2)]


def test_without_a_holdout_the_folds_there_are_predict(run: Run):
    finish(run, 1)
    assert run.models() == [run.fold(1)]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_record_is_named(run: Run, content: bytes):
    finish(run, 0)
    for file in (run.path / "origin.json", run.fold(0).metrics_path):
        file.write_bytes(content)
    with pytest.raises(RunError, match=r"origin\.json: cannot be read"):
        _ = run.origin
    with pytest.raises(RunError, match=r"metrics\.json: cannot be read"):
        _ = run.metrics
