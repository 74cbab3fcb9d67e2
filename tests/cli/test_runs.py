"""Check `kit runs` as it is typed: what it prints, asks and deletes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_runs import make_run

from kit.cli.main import main
from kit.data.dataset import Dataset


@pytest.fixture
def here(processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs."""
    make_run(tmp_path / "runs", processed, 0, parts=(0, 1, 2))
    make_run(tmp_path / "runs", processed, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kit(*arguments: str, answer: str = "") -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, ["runs", *arguments], input=answer)


@pytest.mark.usefixtures("here")
def test_the_list_names_what_differs():
    listed = kit().stdout
    assert "seed=0" in listed
    assert "seed=1" in listed
    rows = json.loads(kit("--json", "--sort", "oof").stdout)
    assert [row["differs"] for row in rows] == [{"train.seed": 0}, {"train.seed": 1}]
    assert "No run in runs fits" in kit("--filter", "oof>9").stderr


@pytest.mark.usefixtures("here")
def test_one_run_is_shown_by_a_part_of_its_name():
    shown = kit("show", "e8d5d21a").stdout
    assert "out-of-fold" in shown
    assert "folds 3" in shown
    assert json.loads(kit("show", "e8d5d21a", "--json").stdout)["parts"]["fold0"]["minutes"] == 1.5


def test_two_runs_are_compared(here: Path):
    first, second = sorted(path.name for path in (here / "runs").iterdir())
    result = json.loads(kit("diff", first, second, "--json").stdout)
    assert sorted(result["recipe"]["train.seed"]) == [0, 1]
    assert kit("diff", first, first).exit_code == 0


@pytest.mark.usefixtures("here")
def test_tags_are_given_and_filtered_by():
    assert kit("tag", "e8d5d21a", "best").stdout == "runs/tiny-electra-e8d5d21a: best\n"
    (row,) = json.loads(kit("--filter", "tags=best", "--json").stdout)
    assert row["name"] == "tiny-electra-e8d5d21a"
    assert "no tags" in kit("tag", "e8d5d21a", "--remove", "best").stdout


def test_nothing_is_deleted_without_a_yes(here: Path, monkeypatch: pytest.MonkeyPatch):
    run = here / "runs" / "tiny-electra-e8d5d21a"
    refused = kit("rm", "e8d5d21a")
    assert refused.exit_code == 2
    assert refused.stderr == "Error: There is no terminal to ask on: add --yes.\n"

    monkeypatch.setattr("kit.cli.runs.can_ask", lambda: True)
    assert kit("rm", "e8d5d21a", answer="n\n").exit_code == 1
    assert run.is_dir()
    assert kit("rm", "e8d5d21a", answer="y\n").exit_code == 0
    assert not run.exists()
    assert json.loads(kit("clean", "--yes", "--json").stdout) == {"deleted": [], "bytes": 0}
