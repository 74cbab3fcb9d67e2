"""Check the way from download to score with the real client in a process without any patch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_kaggle import OWNER, TOKEN, FakeKaggle
from fake_services import SLUG

ROOT = Path(__file__).parents[2]


def run_scenario(
    fake: FakeKaggle, home: Path, folder: Path, token: str | None = None
) -> subprocess.CompletedProcess:
    # With VERBOSE Kaggle's client prints headers, which must not hold a secret.
    env = fake.env(home, token) | {"PYTHONPATH": str(ROOT), "VERBOSE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("scenario.py")), str(folder)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_from_download_to_score(
    fake: FakeKaggle, home: Path, tmp_path: Path, token: str | None
) -> None:
    done = run_scenario(fake, home, tmp_path, token)

    # Printed for the fixture that looks for secrets in the output of every test.
    print(done.stderr)
    assert done.returncode == 0, done.stderr

    seen = json.loads(done.stdout)
    assert seen["files"] == ["sample_submission.csv", "test.csv", "train.csv"]
    assert (seen["state"], seen["score"]) == ("COMPLETE", "0.98765")
    assert seen["kernel"] == f"{OWNER}/kit-infer/1"

    train, infer = (call.body for call in fake.seen("SaveKernel") if call.status == 200)
    assert (train["enableInternet"], infer["enableInternet"]) == (True, False)
    assert train["machineShape"] == infer["machineShape"] == "NvidiaTeslaT4"
    assert infer["kernelDataSources"] == [train["slug"]] == [seen["runs"]]
    assert infer["competitionDataSources"] == [SLUG]
    assert len(fake.submissions) == 1


def test_from_download_to_score_with_a_failure_at_every_step(
    fake: FakeKaggle, home: Path, tmp_path: Path
) -> None:
    for method in (
        "ListDataFiles",
        "DownloadDataFiles",
        "GetKernelSessionStatus",
        "GetSubmission",
        "GetCompetition",
    ):
        fake.fail(method, 429, headers={"Retry-After": "0"})
        fake.fail(method, drop=True)
    fake.fail("_blob", 206, drop=True, times=2)
    fake.fail("SaveKernel", 503)
    fake.fail("SaveKernel", drop=True, after=True)
    fake.fail("CreateCodeSubmission", drop=True, after=True)
    done = run_scenario(fake, home, tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] == "0.98765"
    assert {len(kernel["versions"]) for kernel in fake.kernels.values()} == {1}
    assert len(fake.submissions) == 1
