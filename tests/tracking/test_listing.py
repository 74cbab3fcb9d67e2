"""Check what is listed of runs, how they are told apart, and what deleting them leaves."""

import os
import socket
from pathlib import Path

import pytest
from made_runs import make_run

import kit
from kit.data.dataset import Dataset
from kit.ensembling.members import outdated_members
from kit.errors import HeldError, KitError, RunError
from kit.predictions import read_predictions
from kit.recipe.spec import KEYS
from kit.run import Run
from kit.tracking.cleaning import delete_leftovers, delete_run, find_leftovers
from kit.tracking.differences import compare_recipes, describe_keys, differing_keys, full_key
from kit.tracking.listing import RUN_COLUMNS, find_run, list_runs
from kit.tracking.tags import change_tags, read_tags


@pytest.fixture
def runs(processed: Dataset, tmp_path: Path) -> Path:
    """A folder with a run of all folds, one of the holdout, and one of another recipe."""
    folder = tmp_path / "runs"
    make_run(folder, processed, 0, parts=(0, 1, 2))
    make_run(folder, processed, 1)
    make_run(folder, processed, 0, recipe="tiny-deberta", test=False)
    return folder


def hold(run: Path, part: str, pid: int) -> None:
    """Leave the lock file of a process that trains a part."""
    (run / f".{part}.lock").write_text(f"{pid} {socket.gethostname()}\n")


def test_a_line_has_the_losses_of_the_finished_parts(runs: Path, raw: Path):
    lines = {line.name: line for line in list_runs(runs, truth=raw / "truth.csv")}
    oof = Run(runs / "tiny-electra-e8d5d21a")
    whole = lines[oof.name]
    assert whole.state == "finished"
    assert whole.finished == ("fold0", "fold1", "fold2")
    assert whole.oof == pytest.approx(oof.metrics["oof"]["log_loss"])
    assert whole.holdout is None
    assert whole.loss == whole.oof
    assert whole.test is not None
    assert whole.minutes == 4.5
    assert whole.size == sum(p.stat().st_size for p in oof.path.rglob("*") if p.is_file())
    (one,) = (line for line in lines.values() if line.recipe["train.seed"] == 1)
    assert (one.oof, one.holdout, one.finished) == (None, 1.0, ("holdout",))
    assert [line.test for name, line in lines.items() if "deberta" in name] == [None]


def test_a_test_loss_of_other_models_is_not_shown(runs: Path, raw: Path):
    run = Run(runs / "tiny-electra-e8d5d21a")
    run.write_test(read_predictions(run.test_path), [run.fold(0)])
    (line,) = list_runs(runs, conditions=[f"name={run.name}"], truth=raw / "truth.csv")
    assert line.test is None
    assert "is of fold0, and now" in line.outdated
    assert outdated_members([run.test_path, run.fold(0).predictions_path]) == [line.outdated]


def test_a_part_that_is_not_finished_is_the_state(runs: Path):
    run = runs / "tiny-electra-e8d5d21a"
    (run / "fold1" / "metrics.json").unlink()
    (line,) = list_runs(runs, conditions=[f"name={run.name}"])
    assert line.state == "stopped in fold1"
    assert line.oof is None

    (run / "fold2" / "metrics.json").unlink()
    (run / "fold2" / "collapsed.json").write_text('{"why": "the training collapsed"}')
    (line,) = list_runs(runs, conditions=["state~collapsed"])
    assert line.state == "stopped in fold1, collapsed in fold2"

    hold(run, "fold1", os.getpid())
    assert list_runs(runs, conditions=["state~training"])[0].state == "training fold1"

    # A process that was killed leaves its lock file.
    hold(run, "fold1", 2**22 + 1)
    assert list_runs(runs, conditions=["state~training"]) == []


def test_a_damaged_run_is_listed_with_what_is_wrong(runs: Path):
    (runs / "tiny-electra-e8d5d21a" / "fold0" / "metrics.json").write_text("{")
    (line,) = list_runs(runs, conditions=["state~damaged"])
    assert "fold0/metrics.json: cannot be read" in line.state


def test_runs_of_a_recipe_are_told_apart_by_the_keys_that_differ(runs: Path):
    names = sorted(path.name for path in runs.iterdir())
    keys = dict(zip(names, differing_keys([runs / name for name in names]), strict=True))
    # Another recipe is told apart by its name.
    assert keys.pop("tiny-deberta-16c0d1fe") == {}
    assert keys.pop("tiny-electra-e8d5d21a") == {"train.seed": 0}
    assert list(keys.values()) == [{"train.seed": 1}]
    assert (
        describe_keys({"train.seed": 1, "train.lr": 3e-5, "train.compile": True})
        == "seed=1 lr=3e-05 compile=true"
    )


def test_a_lone_run_is_compared_with_the_shipped_recipe(processed: Dataset, tmp_path: Path):
    assert differing_keys([make_run(tmp_path, processed, 7)]) == [{"train.seed": 7}]
    assert differing_keys([make_run(tmp_path, processed, 0)]) == [{}]


def test_other_rows_are_among_the_differences(runs: Path):
    origin = runs / "tiny-deberta-16c0d1fe" / "origin.json"
    text = origin.read_text()
    origin.write_text(text.replace(Run(origin.parent).option("data", str), "0" * 64))
    keys = {line.name: line.differs for line in list_runs(runs)}
    assert keys["tiny-deberta-16c0d1fe"]["rows"] == "0" * 8
    assert all("rows" in own for own in keys.values())


def test_two_recipes_are_compared_key_by_key(runs: Path):
    found = compare_recipes(find_run("deberta", runs), find_run("electra-e8d5", runs))
    assert found["backbone"] == ("tiny-deberta", "tiny-electra")
    assert found["train.lr"] == (0.002, 0.001)
    assert "train.batch_size" not in found


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("state=finished", 3),
        ("state!=finished", 0),
        ("oof<2", 1),
        ("loss<2", 3),
        ("lr>0.001", 1),
        ("train.lr>=1e-3", 3),
        ("seed=1", 1),
        ("seed!=1.0", 2),
        ("name~DEBERTA", 1),
        ("finished=fold0", 1),
        ("swap=true", 3),
        ("test>0", 2),
    ],
)
def test_conditions_choose_runs(runs: Path, raw: Path, condition: str, count: int):
    assert len(list_runs(runs, conditions=[condition], truth=raw / "truth.csv")) == count


def test_any_column_or_key_sorts_and_what_lacks_it_comes_last(runs: Path):
    for column in (*RUN_COLUMNS, "train.seed", "lr", "backbone"):
        assert len(list_runs(runs, sort=column)) == 3
    assert [line.recipe["train.lr"] for line in list_runs(runs, sort="lr", reverse=True)] == [
        *(0.002, 0.001, 0.001)
    ]
    assert [line.oof is None for line in list_runs(runs, sort="oof")] == [False, True, True]


@pytest.mark.parametrize(
    "words", [{"sort": "nothing"}, {"conditions": ["x=1"]}, {"conditions": ["oof"]}]
)
def test_unknown_columns_and_odd_conditions_are_refused(runs: Path, words: dict):
    with pytest.raises(KitError):
        list_runs(runs, **words)


def test_keys_are_unique_without_their_section():
    assert {full_key(name.rpartition(".")[2]) for name in KEYS} == set(KEYS)


def test_a_run_is_found_by_a_part_of_its_name(runs: Path):
    assert find_run("deberta", runs) == find_run(runs / "tiny-deberta-16c0d1fe")
    with pytest.raises(RunError, match="may be"):
        find_run("tiny", runs)
    with pytest.raises(RunError, match="no run nothing"):
        find_run("nothing", runs)
    with pytest.raises(RunError, match="Did you mean tiny-deberta-16c0d1fe"):
        find_run("tiny-debrta-16c0d1fe", runs)
    with pytest.raises(KitError, match="Did you mean holdout"):
        list_runs(runs, sort="holdot")


def test_tags_are_kept_and_taken_away(runs: Path):
    run = find_run("deberta", runs).path
    assert change_tags(run, ["best", "first", "best"]) == ("best", "first")
    assert [line.tags for line in list_runs(runs, conditions=["tags=best"])] == [("best", "first")]
    assert change_tags(run, remove=["best", "first"]) == read_tags(run) == ()
    with pytest.raises(KitError, match="cannot be a tag"):
        change_tags(run, ["two words"])


def test_a_run_in_training_is_not_deleted(runs: Path):
    run = find_run("deberta", runs)
    hold(run.path, "fold0", os.getpid())
    with pytest.raises(HeldError, match="fold0 is in use by process"):
        delete_run(run)
    hold(run.path, "fold0", 2**22 + 1)
    delete_run(run)
    assert not list(runs.glob("*deberta*"))


def test_cleaning_keeps_models_and_what_a_training_continues_from(runs: Path, tmp_path: Path):
    electra = runs / "tiny-electra-e8d5d21a"
    scratch = tmp_path / "scratch"
    left = [
        tmp_path / "data" / "cache" / "tokens-1" / "x.npy",
        scratch / "checkpoint-5" / "x",
        electra / "fold7" / "checkpoints-of-1" / "x",
        runs / ".kit-train.output" / "x",
        tmp_path / "kernels" / "kit-infer.output" / "submission.csv",
    ]
    kept = [
        electra / "fold7" / "checkpoints" / "x",
        tmp_path / "kernels" / "kit-infer" / "kernel-metadata.json",
        tmp_path / "data" / "train.parquet",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
    (electra / "fold0" / "checkpoints").symlink_to(scratch)
    before = {path for path in runs.rglob("*") if path.is_file()} - {*left}

    found = find_leftovers(runs, tmp_path / "data", tmp_path / "kernels")
    assert delete_leftovers(found) == 5 * len(left)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*kept, *before))
    assert find_leftovers(runs, tmp_path / "data", tmp_path / "kernels") == []


def test_the_python_function_returns_a_table(runs: Path):
    table = kit.runs(runs, conditions=["name~electra"])
    assert sorted(table["train.seed"]) == [0, 1]
    assert set(table["state"]) == {"finished"}
    assert kit.runs(runs, conditions=["oof<0"]).empty
