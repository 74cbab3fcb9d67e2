"""Check that a run becomes a private dataset with every file, ready before it is mounted."""

import re
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle

from kit.errors import RunError
from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.datasets import dataset_slug, publish_dataset
from kit.run import Run

REF = f"{OWNER}/kit-run-tiny-0a1b2c3d"


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
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def expected_files(run: Path) -> dict[str, bytes]:
    paths = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    kept = [path for path in paths if "checkpoints" not in path.parts and path.name[0] != "."]
    return {str(path): (run / path).read_bytes() for path in kept}


def test_a_run_becomes_a_private_dataset_and_then_a_new_version(
    client: Client, fake: FakeKaggle, run: Path, heard: Heard
) -> None:
    first = publish_dataset(client, run, say=heard.lines.append)
    assert (first.ref, first.version) == (REF, 1)
    assert fake.datasets[REF]["private"] is True
    assert fake.datasets[REF]["versions"] == [expected_files(run)]
    assert "READY" in heard.text

    assert publish_dataset(client, run).version == 2
    assert len(fake.datasets[REF]["versions"]) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a-recipe-with-a-very-long-name-of-its-own-0a1b2c3d", None),
        (
            "a-copy-of-a-run-with-a-long-name-made-in-may",
            "a-copy-of-a-run-with-a-long-name-made-in-june",
        ),
        ("run.1", "run_1"),
        ("Best", "best"),
        ("модель", "другая"),
    ],
)
def test_other_runs_have_other_slugs(one: str, other: str | None) -> None:
    """The second of two runs with one slug would become a version of the first one's dataset."""
    other = other or one.replace("0a1b2c3d", "4e5f6071")
    slugs = [dataset_slug(Run(Path(name))) for name in (one, other)]
    assert slugs[0] != slugs[1]
    for slug in slugs:
        assert re.fullmatch(r"kit-run-[a-z0-9-]*[a-z0-9]", slug)
        assert len(slug) <= 50


def test_a_slug_keeps_the_recipes_hash() -> None:
    name = "a-recipe-with-a-very-long-name-of-its-own-0a1b2c3d"
    assert dataset_slug(Run(Path(name))).endswith("-0a1b2c3d")


def test_a_new_version_waits_for_the_one_being_processed(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    publish_dataset(client, run)
    fake.datasets[REF]["script"] = ["REPROCESSING", "REPROCESSING", "READY"]
    fake.datasets[REF]["last"] = "REPROCESSING"
    assert publish_dataset(client, run).version == 2


def test_a_broken_upload_is_resumed(client: Client, fake: FakeKaggle, run: Path) -> None:
    fake.fail("_upload", after=True, drop=True)
    fake.fail("_upload", after=True, status=503)
    publish_dataset(client, run)
    assert fake.datasets[REF]["versions"] == [expected_files(run)]


def test_a_receiver_that_takes_a_part_gets_the_rest(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    # The first file that is uploaded is empty, so two requests pass.
    size = (run / "fold0/model.safetensors").stat().st_size
    fake.fail("_upload", status=0, times=2)
    fake.fail("_upload", 308, after=True, headers={"Range": f"bytes=0-{size // 2 - 1}"})
    publish_dataset(client, run)
    assert fake.datasets[REF]["versions"] == [expected_files(run)]
    # The receiver said what it has and is not asked again.
    assert not [call for call in fake.calls if "*" in call.headers.get("Content-Range", "")]


@pytest.mark.parametrize("status", [404, 410])
def test_an_expired_upload_session_is_opened_anew(
    client: Client, fake: FakeKaggle, run: Path, status: int
) -> None:
    fake.fail("_upload", after=True, drop=True)
    fake.fail("_upload", status)
    publish_dataset(client, run)
    assert fake.datasets[REF]["versions"] == [expected_files(run)]
    assert len(fake.seen("StartBlobUpload")) == len(expected_files(run)) + 1


def test_a_receiver_that_takes_nothing_is_an_error(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    fake.fail("_upload", 308, times=99)
    with pytest.raises(errors.UnreachableError, match="uploading"):
        publish_dataset(client, run)


def test_a_failed_upload_publishes_nothing(client: Client, fake: FakeKaggle, run: Path) -> None:
    fake.fail("_upload", 403, "no", times=99)
    with pytest.raises(errors.KaggleError, match=r"uploading empty\.txt"):
        publish_dataset(client, run)
    assert fake.datasets == {}


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}])
def test_a_lost_answer_creates_no_second_dataset(
    client: Client, fake: FakeKaggle, run: Path, fault: dict
) -> None:
    fake.fail("CreateDataset", after=True, **fault)
    assert publish_dataset(client, run).version == 1
    assert len(fake.seen("CreateDataset")) == 1


def test_a_refusal_sent_as_success_is_an_error(client: Client, fake: FakeKaggle, run: Path) -> None:
    fake.create_dataset = lambda _: {"status": "error", "error": "The title is already in use"}
    with pytest.raises(errors.RefusedError, match=r"Kaggle refused the dataset.*already in use"):
        publish_dataset(client, run)


@pytest.mark.parametrize(
    ("script", "expected"),
    [(["BLOBS_RECEIVED", "FAILED"], "could not process"), (["BLOBS_RECEIVED"], "after 1 minutes")],
)
def test_a_dataset_that_never_becomes_ready_is_an_error(
    client: Client, fake: FakeKaggle, run: Path, script: list[str], expected: str
) -> None:
    fake.dataset_script = script
    with pytest.raises(errors.KaggleError, match=expected):
        publish_dataset(client, run, timeout_s=60)


def test_a_run_without_a_finished_part_is_refused(client: Client, run: Path) -> None:
    (run / "fold0/metrics.json").unlink()
    with pytest.raises(RunError, match="no fold of it has finished"):
        publish_dataset(client, run)
