"""Check `kit plan` and `kit train --dry-run` as a user sees them."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quick_recipe import QUICK

from kit.cli.main import main
from kit.cli.plan import format_hours, format_millions

OVERRIDES = [argument for change in QUICK for argument in ("--set", change)]


def kit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_plan_is_a_table_that_says_how_figures_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = kit("plan", "tiny-electra")
    assert result.exit_code == 0, result.output
    for word in ("2 x T4", "how known", "modelled on", "estimated", "fits into 9 h"):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_a_t4_refuses_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for gpu, fits in (("t4", False), ("l4", True)):
        result = kit("plan", "gemma-3-270m", "--gpu", gpu, "--json")
        values = json.loads(result.stdout)
        assert values["fits"] == fits
        assert ("overflows in fp16, and a T4" in values["verdict"]) != fits
    assert "here" in kit("plan", "tiny-electra", "--gpu", "foo").stderr


def test_a_plan_says_whose_rows_it_is_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/processed").symlink_to(data)
    assert "add --data kaggle" in kit("plan", "tiny-electra").stderr
    whole = kit("plan", "tiny-electra", "--data", "kaggle")
    assert "competition's" in whole.stdout
    assert "--data kaggle" not in whole.stderr


def test_a_plan_as_json_and_for_a_short_session(data: Path):
    result = kit("plan", "tiny-electra", "--data", data, "--max-hours", 0.2, "--json")
    values = json.loads(result.stdout)
    assert values["tokens_from"] == "counted on all rows"
    assert values["sessions"] == 0
    assert not values["fits"]
    assert kit("plan", "tiny-electra", "--data", data / "nowhere").exit_code == 1


def test_a_dry_run_takes_two_steps_and_writes_nothing(data: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    train = ("train", "--backbone", "tiny-electra", *OVERRIDES, "--data", data, "--runs", runs)
    result = kit(*train, "--dry-run", "--fold", "all")
    assert result.exit_code == 0, result.output
    assert "Two steps on the longest rows:" in result.stderr
    assert "fold0" in result.stderr
    assert "fold2" in result.stderr
    assert not runs.exists()

    quick = kit(*train, "--dry-run", "--no-steps", "--json")
    values = json.loads(quick.stdout)
    assert values["tried"] is None
    assert len(values["writes"]) == 1
    assert kit(*train, "--no-steps").exit_code == 2


def test_sizes_are_in_the_unit_that_suits(data: Path):
    shown = kit("plan", "tiny-electra", "--data", data).stdout
    assert re.search(r"disk +[\d.]+ MB; [\d.]+ MB during a fold", shown)
    assert format_millions(160_000) == "0.2M"
    assert format_millions(22_700_000) == "22.7M"
    assert format_millions(9_241_100_000) == "9.2B"


def test_an_unknown_gpu_is_answered_with_all_that_there_are(data: Path):
    result = kit("plan", "tiny-electra", "--data", data, "--gpu", "foo")
    assert result.exit_code == 1
    for name in ("t4", "h100", "cpu", "`here`"):
        assert name in result.stderr


def test_hours_are_in_the_unit_that_suits():
    assert format_hours(0.001) == "under 1 min"
    assert format_hours(0.5) == "30 min"
    assert format_hours(12.34) == "12.3 h"
