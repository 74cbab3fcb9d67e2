"""Check that kit works as one process unless torchrun's whole set of variables is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.launcher import ignore_partial_launch, is_distributed, is_leader, local_rank
from kit.recipe.spec import Recipe
from kit.training.train import train_recipe

LAUNCH = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_torchruns_whole_set_is_a_launch():
    assert is_distributed(LAUNCH)
    assert not is_leader(LAUNCH)
    assert is_leader({**LAUNCH, "RANK": "0", "LOCAL_RANK": "0"})
    assert local_rank(LAUNCH) == 1

    environment = dict(LAUNCH)
    assert ignore_partial_launch(environment) == ""
    assert environment == LAUNCH


@pytest.mark.parametrize("missing", LAUNCH)
def test_a_part_of_the_set_is_no_launch(missing: str):
    environment = {name: value for name, value in LAUNCH.items() if name != missing}
    assert is_leader(environment)
    assert local_rank(environment) is None
    assert "single process" in ignore_partial_launch(environment)
    assert environment == {}


@pytest.mark.parametrize(
    "changes",
    [{"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "one"}, {"MASTER_ADDR": ""}, {"LOCAL_RANK": ""}],
)
def test_numbers_that_contradict_each_other_are_no_launch(changes: dict[str, str]):
    assert is_leader({**LAUNCH, **changes})


def test_mpis_variables_are_no_launch():
    environment = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2"}
    assert "OMPI_COMM_WORLD_SIZE" in ignore_partial_launch(environment)
    assert environment == {}


def test_an_address_alone_is_removed_without_a_note():
    environment = {"MASTER_ADDR": "localhost"}
    assert ignore_partial_launch(environment) == ""
    assert environment == {}


@pytest.fixture(scope="module")
def run(quick: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained run."""
    runs = tmp_path_factory.mktemp("launcher") / "runs"
    return Path(train_recipe(quick, data, runs)["run"])


def run_kit(variables: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that some launcher has left its variables in."""
    done = subprocess.run(
        [sys.executable, "-m", "kit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "runs as a single process" in done.stderr
    return done


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    ],
    ids=", ".join,
)
def test_a_prediction_among_leftover_variables_is_written(
    variables: dict[str, str], run: Path, raw: Path, tmp_path: Path
):
    predicted = tmp_path / "predicted.csv"
    done = run_kit(variables, "predict", run, "--input", raw / "test.csv", "-o", predicted)
    assert "60 rows in" in done.stderr
    assert predicted.is_file()


def test_a_training_among_leftover_variables_tells_its_result(data: Path, tmp_path: Path):
    quick = ("--set", "train.max_steps=2", "--set", "train.evals_per_epoch=1", "--no-guard")
    folders = ("--data", data, "--runs", tmp_path / "runs")
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    trained = run_kit(variables, "train", "--backbone", "tiny-electra", *quick, *folders, "--json")
    assert "log_loss" in trained.stdout
    assert "kernels-community" not in trained.stderr, "an advice of bitsandbytes"
