"""Check that `fan_out` runs two jobs at a time, collects every fold and can be started again."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle
from training_output import METRICS, RECIPE, training_output, with_output_list

from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.collect import collect_folds, fold_origins
from kit.kaggle.fan_out import fan_out
from kit.kaggle.job import Job, baseline_job, train_jobs
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.runtime.session import OUTPUT_LIST
from kit.predictions import read_predictions
from kit.run import Run
from kit.storage.lock import hold_lock


@pytest.fixture
def jobs() -> list[Job]:
    return train_jobs([RECIPE], preprocess={"folds": 3})


@pytest.fixture(autouse=True)
def outputs_by_fold(fake: FakeKaggle) -> None:
    """Make each kernel leave the fold that its title names."""
    real = fake.save_kernel

    def save(body: dict) -> dict:
        if body["newTitle"][-1] in METRICS:
            fake.kernel_files = training_output(RECIPE, body["newTitle"][-1])
        return real(body)

    fake.save_kernel = save


def largest_number_at_once(fake: FakeKaggle) -> int:
    """Return the largest number of versions that were pushed and not yet downloaded."""
    largest = 0
    active = set()
    for call in fake.calls:
        rpc = call.rpc or ""
        if rpc.endswith("/SaveKernel"):
            active.add(call.body["slug"])
        elif rpc.endswith("/ListKernelSessionOutput"):
            active.discard(f"{call.body['userName']}/{call.body['kernelSlug']}")
        largest = max(largest, len(active))
    return largest


def test_every_fold_is_trained_and_collected(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, heard: Heard
) -> None:
    outcomes = fan_out(
        client, jobs, tmp_path / "runs", tmp_path / "kernels", say=heard.lines.append
    )
    assert [o.status for o in outcomes] == ["done"] * 3

    run = Run.open(tmp_path / "runs" / RECIPE.run_name)
    assert list(run.metrics["parts"]) == ["fold0", "fold1", "fold2"]
    assert (run.fold(2).path / "model.safetensors").read_text() == "weights of 2"
    assert json.loads((run.path / "metrics.json").read_text())["oof"] == {
        "log_loss": pytest.approx((10 + 14 + 12) / 40),
        "accuracy": pytest.approx((5 + 4 + 6) / 40),
        "rows": 40,
    }
    assert read_predictions(run.path / "oof.csv")["id"].tolist() == [
        *range(10),
        *range(100, 120),
        *range(200, 210),
    ]
    assert largest_number_at_once(fake) == 2
    assert fold_origins(run.path) == {f"fold{n}": str(outcomes[n].ref) for n in range(3)}
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [RECIPE.run_name]


def test_a_second_start_pushes_nothing(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")
    outcomes = fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")
    assert [o.status for o in outcomes] == ["there already"] * 3
    assert len(fake.seen("SaveKernel")) == 3


def test_rows_prepared_differently_are_not_taken_for_collected(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "kernels")
    others = train_jobs([RECIPE], fold="0", preprocess={"folds": 3, "text": "ascii"})
    seeded = train_jobs([RECIPE], fold="0", preprocess={"folds": 3, "seed": 7})
    outcomes = fan_out(client, [*others, *seeded], tmp_path / "runs", tmp_path / "kernels")

    # The origin.json of the run does not note its seed, so that cannot differ.
    assert [o.status for o in outcomes] == ["failed", "there already"]
    assert "--text unicode, but this training uses --text ascii" in outcomes[0].problem
    assert len(fake.seen("SaveKernel")) == 1

    # In another folder of runs it is trained, by another kernel.
    (elsewhere,) = fan_out(client, others, tmp_path / "ascii", tmp_path / "kernels")
    assert (elsewhere.status, elsewhere.ref.version) == ("done", 1)


def test_a_kernel_that_is_on_kaggle_already_is_not_pushed_again(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, heard: Heard
) -> None:
    fan_out(client, jobs[:1], tmp_path / "elsewhere", tmp_path / "kernels")
    outcomes = fan_out(
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
    outcomes = fan_out(client, jobs, tmp_path / "runs", tmp_path / "kernels")

    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert "The log ends:\nhello" in outcomes[1].problem
    assert list(Run.open(tmp_path / "runs" / RECIPE.run_name).metrics["parts"]) == [
        "fold0",
        "fold2",
    ]


def test_a_job_that_failed_is_pushed_again_at_the_next_start(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.kernel_script = ["ERROR"]
    assert fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].status == "failed"
    fake.kernel_script = ["QUEUED", "COMPLETE"]
    assert fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].ref.version == 2


def test_a_job_waits_for_a_free_session(
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
    outcomes = fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k", say=heard.lines.append)

    assert outcomes[0].status == "done"
    assert heard.text.count("session count of 2") == 3


def test_a_short_outage_is_survived(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.fail("GetKernelSessionStatus", 503, times=20)
    assert fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")[0].status == "done"


def test_a_long_outage_ends_the_fan_out(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path
) -> None:
    fake.fail("GetKernelSessionStatus", 503, times=10**6)
    with pytest.raises(errors.UnreachableError):
        fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")


@pytest.mark.parametrize(
    "method", ["GetKernel", "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"]
)
def test_an_expired_credential_is_not_a_failure_of_the_jobs(
    client: Client, fake: FakeKaggle, jobs: list[Job], tmp_path: Path, method: str
) -> None:
    fake.fail(method, 401, "Unauthenticated", times=10**6)
    with pytest.raises(errors.CredentialsError):
        fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")


def test_folds_of_other_data_are_not_merged(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    home.mkdir(parents=True)
    (home / "recipe.toml").write_text(RECIPE.to_toml())
    (home / "origin.json").write_text('{"data": "others", "folds": 3}')
    (outcome,) = fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")

    assert outcome.status == "failed"
    assert "different data" in outcome.problem
    assert not (home / "fold0").exists()


def test_a_classical_run_is_collected_and_known_to_be_there(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    job = baseline_job("boosted", fold="holdout", preprocess={"folds": 3})
    name = job.settings["run_name"]
    origin = {"data": "d1", "folds": 3, "baseline": "boosted"}
    files = {
        path.replace(RECIPE.run_name, name).replace("fold0", "holdout"): content
        for path, content in training_output(RECIPE, "0").items()
        if not path.endswith(("recipe.toml", OUTPUT_LIST))
    }
    files[f"runs/{name}/origin.json"] = json.dumps(origin).encode()
    fake.kernel_files = with_output_list(files)
    for status in ("done", "there already"):
        (outcome,) = fan_out(client, [job], tmp_path / "runs", tmp_path / "k")
        assert outcome.status == status, outcome.problem
    run = Run.open(tmp_path / "runs" / name)
    assert run.baseline == "boosted"
    assert run.fold("holdout").is_finished


def test_an_unfinished_local_training_is_not_overwritten(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    (home / "fold0/checkpoints/checkpoint-7").mkdir(parents=True)
    (home / "recipe.toml").write_text(RECIPE.to_toml())
    (home / "origin.json").write_text('{"data": "d1", "folds": 3}')
    (outcome,) = fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")

    assert outcome.status == "failed"
    assert "unfinished training" in outcome.problem
    assert (home / "fold0/checkpoints/checkpoint-7").is_dir()


def test_a_fold_that_is_being_trained_locally_is_not_replaced(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    home = tmp_path / "runs" / RECIPE.run_name
    with hold_lock(home, "fold1"):
        outcomes = fan_out(client, jobs, tmp_path / "runs", tmp_path / "k")
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    assert f"fold1 is in use by process {os.getpid()}" in outcomes[1].problem
    assert list(Run.open(home).metrics["parts"]) == ["fold0", "fold2"]
    assert set(fold_origins(home)) == {"fold0", "fold2"}


def test_a_kernel_is_collected_by_one_process_at_a_time(
    client: Client, jobs: list[Job], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with hold_lock(runs, f"{jobs[0].slug}.collect"):
        (outcome,) = fan_out(client, jobs[:1], runs, tmp_path / "k")
    assert outcome.status == "failed"
    assert "in use by" in outcome.problem
    assert not runs.exists()


def test_the_summary_waits_for_another_writer(
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
    (outcome,) = fan_out(client, jobs[:1], tmp_path / "runs", tmp_path / "k")
    writer.join()

    assert outcome.status == "done"
    assert "which is busy with" in caplog.text
    assert list(Run.open(home).metrics["parts"]) == ["fold0"]


def test_the_latest_version_is_noted_where_none_was_named(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.kernel_script = ["COMPLETE"]
    fake.kernel_files = training_output(RECIPE, "0")
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
