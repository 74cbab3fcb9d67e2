"""The whole way in one go, through the real client in a process of its own; smooth, and with something failing at
every step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_kaggle import OWNER, TOKEN, FakeKaggle
from fake_services import SLUG

ROOT = Path(__file__).parents[2]


def walk(fake: FakeKaggle, home: Path, folder: Path, **how: str) -> subprocess.CompletedProcess:
    env = fake.env(home, **how) | {
        "PYTHONPATH": str(ROOT),
        "VERBOSE": "1",
    }  # VERBOSE: kaggle's own prints headers
    command = [sys.executable, str(Path(__file__).with_name("scenario.py")), str(folder)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)


def check(done: subprocess.CompletedProcess, fake: FakeKaggle) -> None:
    print(done.stderr)  # for the check that no secret gets out
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


@pytest.mark.parametrize("how", [{}, {"token": TOKEN}])
def test_from_download_to_score(
    fake: FakeKaggle, home: Path, tmp_path: Path, how: dict[str, str]
) -> None:
    check(walk(fake, home, tmp_path, **how), fake)


def test_from_download_to_score_with_a_failure_at_every_step(fake: FakeKaggle, home: Path, tmp_path: Path) -> None:
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
    done = walk(fake, home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] == "0.98765"
    assert {len(kernel["versions"]) for kernel in fake.kernels.values()} == {1}
    assert len(fake.submissions) == 1
