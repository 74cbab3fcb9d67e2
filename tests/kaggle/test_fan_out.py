"""The fleet: two at once, each result brought home, failures told apart, and a second start that repeats nothing."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle

from kit.kaggle import errors, fan_out
from kit.kaggle.client import Client
from kit.kaggle.collect import collect_folds, fold_origins
from kit.kaggle.job import Job, train_jobs
from kit.kaggle.kernels import KernelRef
from kit.kaggle.runtime.session import OUTPUTS
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.lock import hold_lock
from kit.task import PREDICTION_COLUMNS

RECIPE = load_recipe("tiny-electra")
METRICS = {
    "0": {"log_loss": 1.0, "accuracy": 0.5, "valid_rows": 10},
    "1": {"log_loss": 0.7, "accuracy": 0.2, "valid_rows": 20},
    "2": {"log_loss": 1.2, "accuracy": 0.6, "valid_rows": 10},
}


def output(recipe: Recipe, fold: str, data: str = "d1") -> dict[str, bytes]:
    """What a training kernel leaves: a run directory with one finished fold, and the list of files."""
    run = f"runs/{recipe.run_name}"
    files = {
        f"{run}/recipe.toml": recipe.to_toml().encode(),
        f"{run}/origin.json": json.dumps({"data": data, "folds": 3, "text": "unicode"}).encode(),
        f"{run}/fold{fold}/model.safetensors": f"weights of {fold}".encode(),
        f"{run}/fold{fold}/valid.csv": f"{','.join(PREDICTION_COLUMNS)}\n{fold},0.2,0.3,0.5\n".encode(),
        f"{run}/fold{fold}/metrics.json": json.dumps(METRICS[fold]).encode(),
        f"{run}/metrics.json": b"{}",
    }
    written = {
        n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()
    }
    return files | {OUTPUTS: json.dumps({"push": "", "files": written}).encode()}


@pytest.fixture
def jobs() -> list[Job]:
    return train_jobs([RECIPE], preprocess={"folds": 3})


@pytest.fixture(autouse=True)
def outputs_by_fold(fake: FakeKaggle) -> None:
    """Each kernel of the fleet leaves the fold that its title names."""
    real = fake.save_kernel

    def save(body: dict) -> dict:
        if body["newTitle"][-1] in METRICS:
            fake.kernel_files = output(RECIPE, body["newTitle"][-1])
        return real(body)

    fake.save_kernel = save


def most_at_once(fake: FakeKaggle) -> int:
    """The largest number of versions that were pushed and not yet finished, over all calls."""
    most, active = 0, set()
    for call in fake.calls:
        rpc = call.rpc or ""
        if rpc.endswith("/SaveKernel"):
            active.add(call.body["slug"])
        elif rpc.endswith("/ListKernelSessionOutput"):
            active.discard(f"{call.body['userName']}/{call.body['kernelSlug']}")
        most = max(most, len(active))
    return most


def test_every_fold_is_trained_and_brought_home(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, heard: Heard
) -> None:
    outcomes = fan_out.fan_out(
        client, jobs, tmp_path / "runs", tmp_path / "kernels", say=heard.lines.append
    )
    assert [o.status for o in outcomes] == ["done"] * 3
    run = Run.open(tmp_path / "runs" / RECIPE.run_name)
    assert list(run.parts()) == ["fold0", "fold1", "fold2"]
    assert (run.part(2) / "model.safetensors").read_text() == "weights of 2"
    assert json.loads((run.path / "metrics.json").read_text())["oof"] == {
        "log_loss": pytest.approx((10 + 14 + 12) / 40),
        "accuracy": pytest.approx((5 + 4 + 6) / 40),
        "rows": 40,
    }
    assert read_predictions(run.path / "oof.csv")["id"].tolist() == [0, 1, 2]
    assert most_at_once(fake) == 2
    assert fold_origins(run.path) == {f"fold{n}": str(outcomes[n].ref) for n in range(3)}
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [RECIPE.run_name]


def test_a_second_start_repeats_nothing(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fan_out.fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")
    outcomes = fan_out.fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")
    assert [o.status for o in outcomes] == ["there already"] * 3
    assert len(fake.seen("SaveKernel")) == 3


def test_rows_prepared_otherwise_are_not_there_already(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "kernels")
    others = train_jobs([RECIPE], fold="0", preprocess={"folds": 3, "text": "ascii"})
    again = train_jobs([RECIPE], fold="0", preprocess={"folds": 3, "seed": 7})
    outcomes = fan_out.fan_out(client, [*others, *again], tmp_path / "runs", tmp_path / "kernels")
    assert [o.status for o in outcomes] == [
        "failed",
        "there already",
    ]  # of its seed the run knows nothing
    assert (
        "with --text unicode, and this training is to be with --text ascii" in outcomes[0].problem
    )
    assert len(fake.seen("SaveKernel")) == 1
    (elsewhere,) = fan_out.fan_out(client, others, tmp_path / "ascii", tmp_path / "kernels")
    assert (elsewhere.status, elsewhere.ref.version) == ("done", 1)  # a kernel of its own


def test_what_runs_on_kaggle_already_is_taken_up(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, heard: Heard
) -> None:
    fan_out.fan_out(client, jobs[:1], tmp_path / "elsewhere", tmp_path / "kernels")
    outcomes = fan_out.fan_out(
        client, jobs[:1], tmp_path / "runs", tmp_path / "kernels", say=heard.lines.append
    )
    assert [o.status for o in outcomes] == ["done"]
    assert len(fake.seen("SaveKernel")) == 1
    assert "is on Kaggle already" in heard.text


def test_one_failure_does_not_stop_the_others(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    real = fake.save_kernel

    def save(body: dict) -> dict:
        fails = body["newTitle"].endswith("1")
        fake.kernel_script = ["QUEUED", "RUNNING", "ERROR" if fails else "COMPLETE"]
        return real(body)

    fake.save_kernel = save
    outcomes = fan_out.fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert "The log ends:\nhello" in outcomes[1].problem
    assert list(Run.open(tmp_path / "runs" / RECIPE.run_name).parts()) == ["fold0", "fold2"]


def test_a_job_that_failed_is_pushed_again_at_the_next_start(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.kernel_script = ["ERROR"]
    assert (
        fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].status == "failed"
    )
    fake.kernel_script = ["QUEUED", "COMPLETE"]
    assert fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].ref.version == 2


def test_sessions_taken_by_others_are_waited_for(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, heard: Heard
) -> None:
    fake.kernels[f"{OWNER}/another"] = {
        "id": 1,
        "versions": {n: {"gpu": True, "last": "RUNNING"} for n in (1, 2)},
    }
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            del fake.kernels[f"{OWNER}/another"]

    object.__setattr__(client.patience, "sleep", pause)
    outcomes = fan_out.fan_out(
        client, jobs[:1], tmp_path / "runs", tmp_path / "k", say=heard.lines.append
    )
    assert outcomes[0].status == "done"
    assert heard.text.count("session count of 2") == 3


def test_an_outage_is_outlived(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.fail("GetKernelSessionStatus", 503, times=20)
    assert fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].status == "done"


def test_an_outage_without_end_ends_the_fleet(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.fail("GetKernelSessionStatus", 503, times=10**6)
    with pytest.raises(errors.UnreachableError):
        fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")


@pytest.mark.parametrize(
    "method", ["GetKernel", "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"]
)
def test_a_credential_that_is_over_is_no_failure_of_the_jobs(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, method: str
) -> None:
    fake.fail(method, 401, "Unauthenticated", times=10**6)
    with pytest.raises(errors.CredentialsError):
        fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")


def test_a_run_of_other_data_is_not_mixed_in(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    home.mkdir(parents=True)
    (home / "recipe.toml").write_text(RECIPE.to_toml())
    (home / "origin.json").write_text('{"data": "others", "folds": 3}')
    (outcome,) = fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")
    assert outcome.status == "failed"
    assert "other rows" in outcome.problem
    assert not (home / "fold0").exists()


def test_an_unfinished_training_of_this_machine_is_not_overwritten(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    (home / "fold0/checkpoints/checkpoint-7").mkdir(parents=True)
    (home / "recipe.toml").write_text(RECIPE.to_toml())
    (home / "origin.json").write_text('{"data": "d1", "folds": 3}')
    (outcome,) = fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")
    assert (outcome.status, "unfinished training" in outcome.problem) == ("failed", True)
    assert (home / "fold0/checkpoints/checkpoint-7").is_dir()


def test_a_part_that_is_being_trained_here_is_left_to_it(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    with hold_lock(home, "fold1"):
        outcomes = fan_out.fan_out(client, jobs, tmp_path / "runs", tmp_path / "k")
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert f"fold1 is in use by process {os.getpid()}" in outcomes[1].problem
    assert list(Run.open(home).parts()) == ["fold0", "fold2"]
    assert set(fold_origins(home)) == {"fold0", "fold2"}


def test_a_kernel_is_brought_home_by_one_process_at_a_time(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with hold_lock(runs, f"{jobs[0].slug}.collect"):
        (outcome,) = fan_out.fan_out(client, jobs[:1], runs, tmp_path / "k")
    assert (outcome.status, "in use by" in outcome.problem) == ("failed", True)
    assert not runs.exists()


def test_the_metrics_of_a_run_wait_for_whoever_writes_them(
    client: Client, jobs: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home, begun = tmp_path / "runs" / RECIPE.run_name, threading.Event()

    def write() -> None:
        with hold_lock(home, "metrics"):
            begun.set()
            ends = time.monotonic() + 20
            while "which is busy with" not in caplog.text and time.monotonic() < ends:
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(10)
    (outcome,) = fan_out.fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")
    writer.join()
    assert outcome.status == "done"
    assert "which is busy with" in caplog.text
    assert list(Run.open(home).parts()) == ["fold0"]


def test_the_version_is_remembered_though_none_was_named(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.kernel_script, fake.kernel_files = ["COMPLETE"], output(RECIPE, "0")
    for _ in range(2):
        fake.save_kernel({"slug": f"{OWNER}/kit-train", "newTitle": "kit train", "text": ""})
    collect_folds(client, KernelRef(OWNER, "kit-train"), tmp_path / "runs")
    assert fold_origins(tmp_path / "runs" / RECIPE.run_name) == {"fold0": f"{OWNER}/kit-train/2"}


def test_an_output_without_a_run_is_an_error(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.kernel_script = ["COMPLETE"]
    fake.save_kernel({"slug": f"{OWNER}/kit-other", "newTitle": "kit other", "text": ""})
    with pytest.raises(errors.KaggleError, match="holds no run directory"):
        collect_folds(client, KernelRef(OWNER, "kit-other", 1), tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
