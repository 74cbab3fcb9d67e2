"""A run as a private dataset: every file of it, ready before anybody mounts it."""

from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle

from kit.errors import RunError
from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.datasets import publish_dataset


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a finished fold, as far as publishing looks into it."""
    folder = tmp_path / "runs/tiny-0a1b2c3d"
    files = {
        "recipe.toml": b"name = 'tiny'\n",
        "origin.json": b"{}",
        "fold0/model.safetensors": bytes(range(256)) * 1000,
        "fold0/metrics.json": b"{}",
        "fold0/empty.txt": b"",
        "fold1/checkpoints/checkpoint-5/optimizer.pt": b"not this",
        ".hidden": b"nor this",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def uploaded(run: Path) -> dict[str, bytes]:
    kept = [
        p
        for p in run.rglob("*")
        if p.is_file() and "checkpoints" not in p.parts and p.name[0] != "."
    ]
    return {str(p.relative_to(run)): p.read_bytes() for p in kept}


def test_a_run_becomes_a_private_dataset_and_then_a_version_of_it(
    client: Client, fake: FakeKaggle, run: Path, heard: Heard
) -> None:
    first = publish_dataset(client, run, say=heard.lines.append)
    assert (first.ref, first.version) == (f"{OWNER}/kit-run-tiny-0a1b2c3d", 1)
    stored = fake.datasets[first.ref]
    assert stored["private"] is True
    assert stored["versions"] == [uploaded(run)]
    assert "READY" in heard.text
    assert publish_dataset(client, run).version == 2
    assert len(stored["versions"]) == 2


def test_a_version_waits_for_the_one_that_is_being_processed(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    publish_dataset(client, run)
    stored = fake.datasets[f"{OWNER}/kit-run-tiny-0a1b2c3d"]
    stored["script"], stored["last"] = ["REPROCESSING", "REPROCESSING", "READY"], "REPROCESSING"
    assert publish_dataset(client, run).version == 2


def test_an_upload_goes_on_where_it_broke(client: Client, fake: FakeKaggle, run: Path) -> None:
    fake.fail("_upload", after=True, drop=True)
    fake.fail("_upload", after=True, status=503)
    publish_dataset(client, run)
    assert fake.datasets[f"{OWNER}/kit-run-tiny-0a1b2c3d"]["versions"] == [uploaded(run)]


def test_a_file_that_cannot_be_uploaded_publishes_nothing(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    fake.fail("_upload", 403, "no", times=99)
    with pytest.raises(errors.KaggleError, match=r"uploading empty\.txt"):
        publish_dataset(client, run)
    assert fake.datasets == {}


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}])
def test_a_lost_answer_makes_no_second_dataset(
    client: Client, fake: FakeKaggle, run: Path, fault: dict
) -> None:
    fake.fail("CreateDataset", after=True, **fault)
    assert publish_dataset(client, run).version == 1
    assert len(fake.seen("CreateDataset")) == 1


def test_a_refusal_sent_with_success_is_an_error(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    fake.create_dataset = lambda _: {"status": "error", "error": "The title is already in use"}
    with pytest.raises(errors.RefusedError, match="already in use"):
        publish_dataset(client, run)


@pytest.mark.parametrize(
    ("script", "told"),
    [(["BLOBS_RECEIVED", "FAILED"], "could not process"), (["BLOBS_RECEIVED"], "after 1 minutes")],
)
def test_one_that_never_becomes_ready_is_an_error(
    client: Client, fake: FakeKaggle, run: Path, script: list[str], told: str
) -> None:
    fake.dataset_script = script
    with pytest.raises(errors.KaggleError, match=told):
        publish_dataset(client, run, timeout_s=60)


def test_a_run_without_a_finished_part_is_not_published(client: Client, run: Path) -> None:
    (run / "fold0/metrics.json").unlink()
    with pytest.raises(RunError, match="no part of it has finished"):
        publish_dataset(client, run)
