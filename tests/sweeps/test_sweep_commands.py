"""Check `kit sweep` from the command line, with real trainings of a toy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_training import Fake, MakeSweep
from interruption import interrupt_at
from made_runs import make_run
from quick_recipe import QUICK

from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.sweeps import study
from kit.sweeps.run import run_sweep
from kit.sweeps.sweep import list_sweeps
from kit.task import HOLDOUT
from kit.training.train import train_recipe

# Two evaluations of three steps.
BASE = (*QUICK, "train.max_steps=6")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def kit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sweep(data: Path, *arguments: object) -> Result:
    """Search two rates, in one of which nothing is learned."""
    settings = [word for override in BASE for word in ("--set", override)]
    keys = ("--key", "train.lr=1e-3,1e-9", "--seeds", "2", "--data", data)
    return kit("sweep", "tiny-electra", *keys, *settings, *arguments)


def run_name(lr: str, seed: int) -> str:
    return load_recipe("tiny-electra", (*BASE, f"train.lr={lr}", f"train.seed={seed}")).run_name


def test_an_interrupted_sweep_is_continued_and_ranked(
    data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    # A training of the user's own is one of the sweep's.
    first = load_recipe("tiny-electra", (*BASE, "train.lr=1e-3"))
    train_recipe(first, data, here / "runs")

    monkeypatch.setattr(study, "FINISHED_BEFORE_PRUNING", 1)
    monkeypatch.setattr(study, "FIRST_PRUNED_STEP", 1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(5, patch)
        stopped = sweep(data)
    assert stopped.exit_code == 130
    assert f"{first.run_name}/holdout is already finished" in stopped.stderr
    assert "Run the same command again to continue" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert "1 of 2 seeds" in kit("sweep", "show").stdout

    # The second seed goes on from its checkpoint; the other rate is worse at once, and is pruned.
    done = sweep(data)
    assert done.exit_code == 0, done.output
    assert "resuming from step 3" in done.stderr
    assert "trial 1: pruned, log loss" in done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if "finished" in line or "pruned" in line]
    assert [(row[0], row[-3], row[-2]) for row in rows] == [
        ("0", "0.001", "finished"),
        ("1", "1e-09", "pruned"),
    ]
    assert "Next: kit train --recipe tiny-electra --set encode.max_tokens=32" in done.stderr
    assert "--set train.lr=0.001 --fold all" in done.stderr

    (point, pruned) = json.loads(kit("sweep", "show", "--json").stdout)["points"]
    assert point["runs"] == [run_name("1e-3", 0), run_name("1e-3", 1)]
    losses = [Run(here / "runs" / n).fold(HOLDOUT).metrics["log_loss"] for n in point["runs"]]
    assert point["losses"] == losses
    assert point["mean"] == pytest.approx(sum(losses) / 2)
    assert (pruned["state"], pruned["losses"]) == ("pruned", [])

    states = {line["name"]: line["state"] for line in json.loads(kit("runs", "--json").stdout)}
    assert states == {
        **dict.fromkeys(point["runs"], "finished"),
        run_name("1e-9", 0): "pruned",
    }


def test_a_pruned_run_that_is_trained_by_itself_reads_finished(processed: Dataset, here: Path):
    run = Run(make_run(here / "runs", processed))
    run.mark_ended("pruned", "trial 1")
    assert json.loads(kit("runs", "--json").stdout)[0]["state"] == "finished"


def test_wrong_keys_are_reported_before_anything_is_made(data: Path, here: Path):
    for arguments, problem in (
        (["--key", "train.rate=1,2"], "unknown key train.rate"),
        (["--key", "train.patience=1,2", "--set", "train.patience=1"], "in --set and in --key"),
        (["--fold", "7"], "--fold '7'"),
        (["--data", here / "none"], "none"),
    ):
        result = sweep(data, *arguments)
        assert result.exit_code == 1
        assert problem in result.stderr
        assert "Traceback" not in result.output
    assert list(here.iterdir()) == []


def test_options_may_come_before_the_recipe_and_the_command_be_named():
    for words in (
        ["--key", "train.lr=1,2", "tiny-electra"],
        ["tiny-electra", "--key", "train.lr=1,2"],
        ["run", "tiny-electra", "--key", "train.lr=1,2"],
    ):
        result = kit("sweep", *words)
        assert "train.lr = 2.0 is out of range" in result.stderr
    assert kit("sweep").exit_code == 2
    assert kit("sweep", "tiny-electra").exit_code == 2


def test_without_optuna_the_extra_is_named(data: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "find_spec", lambda _: None)
    for result in (sweep(data), kit("sweep", "show")):
        assert result.exit_code == 1
        assert "pip install 'optuna>=4'" in result.stderr
    assert list(here.iterdir()) == []


def test_without_a_sweep_show_says_how_to_begin():
    result = kit("sweep", "show")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Next: kit sweep" in result.stderr
    assert kit("sweep", "show", "none").exit_code == 1


def test_several_sweeps_are_listed(data: Path, here: Path):
    for seed in ("0", "1"):
        keys = ("--key", "train.lr=1e-3,1e-4", "--sampler-seed", seed, "--data", data)
        # Nothing is begun in so little time.
        result = kit("sweep", "tiny-electra", *keys, "--hours", "1e-9")
        assert "time limit reached" in result.stderr
    names = [path.name for path in list_sweeps(here / "sweeps")]
    listed = kit("sweep", "show")
    assert all(name in listed.stdout for name in names)
    assert f"Next: kit sweep show {names[0]}" in listed.stderr
    assert "points" in json.loads(kit("sweep", "show", "--json").stdout)[0]


@pytest.mark.parametrize("seeds", [1, 2])
def test_only_several_seeds_have_an_interval(
    seeds: int, make_sweep: MakeSweep, fake: Fake, data: Path, here: Path
):
    fake(lambda recipe: 1 + recipe.train.seed / 100)
    sweep = make_sweep(seeds=seeds)
    run_sweep(sweep, data, here / "runs", trials=1)
    shown = kit("sweep", "show", sweep.name)
    assert ("95%" in shown.stdout) == (seeds > 1)
    assert shown.stdout.splitlines()[0].endswith(("1 seed", "2 seeds"))


def test_a_ranking_is_shown_without_torch():
    code = "import sys, kit.cli.sweep, kit.sweeps.ranking; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
