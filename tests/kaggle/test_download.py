"""`kit download`: whole files or none, whatever breaks on the way."""

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import FakeKaggle
from fake_services import SLUG, make_zip

from kit.errors import KitError
from kit.kaggle import download as downloading
from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.download import download_competition
from kit.kaggle.retry import RetryPolicy
from kit.storage import atomic

NAMES = ["sample_submission.csv", "test.csv", "train.csv"]


@pytest.fixture(autouse=True)
def big(fake: FakeKaggle) -> bytes:
    """A train.csv that does not compress: it arrives in many pieces."""
    fake.competitions[SLUG]["train.csv"] = random.Random(0).randbytes(300_000)
    return fake.competitions[SLUG]["train.csv"]


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_the_files_arrive_whole_and_nothing_else(
    client: Client, fake: FakeKaggle, tmp_path: Path, big: bytes
) -> None:
    result = download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == NAMES
    assert {n: (tmp_path / "raw" / n).read_bytes() for n in NAMES} == fake.competitions[SLUG]
    assert result.sizes["train.csv"] == len(big)
    assert result.train_sha256 == hashlib.sha256(big).hexdigest()
    assert not result.already


def test_progress_counts_to_the_end(client: Client, fake: FakeKaggle, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    download_competition(client, tmp_path / "raw", progress=lambda *now: seen.append(now))
    size = len(make_zip(fake.competitions[SLUG]))
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_unknown_train_csv_is_a_warning_and_the_known_one_is_none(
    client: Client, tmp_path: Path, big: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        "Kaggle may have updated it" in download_competition(client, tmp_path / "raw").warnings[0]
    )
    monkeypatch.setattr(downloading, "TRAIN_SHA256", hashlib.sha256(big).hexdigest())
    assert download_competition(client, tmp_path / "raw").warnings == ()


def test_a_second_run_downloads_nothing(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard
) -> None:
    download_competition(client, tmp_path / "raw")
    before = len(fake.calls)
    assert download_competition(client, tmp_path / "raw", say=heard.lines.append).already
    assert [c.rpc.split("/")[1] for c in fake.calls[before:]] == ["ListDataFiles"]
    assert "there already" in heard.text


def test_other_files_of_these_names_are_kept_without_force(client: Client, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.csv").write_text("mine")
    with pytest.raises(KitError, match=r"train\.csv is there already with 4 bytes.*300,000"):
        download_competition(client, tmp_path / "raw")
    assert (tmp_path / "raw/train.csv").read_text() == "mine"
    download_competition(client, tmp_path / "raw", force=True)
    assert (tmp_path / "raw/train.csv").stat().st_size == 300_000


def test_a_file_of_the_right_length_and_wrong_bytes_is_mended_with_force(
    client: Client, tmp_path: Path, big: bytes
) -> None:
    download_competition(client, tmp_path / "raw")
    (tmp_path / "raw/train.csv").write_bytes(big[::-1])
    kept = download_competition(client, tmp_path / "raw")
    assert (kept.already, "--force downloads it again" in kept.warnings[0]) == (True, True)
    assert not download_competition(client, tmp_path / "raw", force=True).already
    assert (tmp_path / "raw/train.csv").read_bytes() == big


def test_every_page_of_the_list_is_read(client: Client, fake: FakeKaggle) -> None:
    fake.competitions[SLUG] |= {f"extra/{n}.csv": b"x" * n for n in range(450)}
    assert downloading.competition_files(client, SLUG) == {
        n: len(d) for n, d in fake.competitions[SLUG].items()
    }
    assert len(fake.seen("ListDataFiles")) == 3


@pytest.mark.parametrize(
    "fault",
    [{"drop": True}, {"status": 206, "drop": True}, {"status": 503}, {"stall_s": 0.8, "status": 0}],
)
def test_a_broken_transfer_goes_on_in_the_same_run(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard, fault: dict
) -> None:
    fake.take_fault("_blob")
    fake.fail("_blob", status=0, stall_s=0.0)  # the request that only asks for the address
    fake.fail("_blob", **fault)
    download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == NAMES
    assert len(heard.pauses) == 1


def test_half_a_download_is_continued_and_not_begun_again(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard
) -> None:
    fake.fail("_blob", status=0)
    fake.fail("_blob", 206, drop=True)
    download_competition(client, tmp_path / "raw", say=heard.lines.append)
    starts = [
        int(c.headers["Range"].removeprefix("bytes=")[:-1])
        for c in fake.calls
        if "Range" in c.headers
    ]
    assert len(starts) == 1
    assert 64_000 < starts[0] <= len(make_zip(fake.competitions[SLUG])) // 2
    assert "continuing at" in heard.text


def test_a_later_run_continues_where_an_earlier_one_gave_up(
    fake: FakeKaggle, home: Path, tmp_path: Path
) -> None:
    with fake.patched(home), Client(patience=RetryPolicy(attempts=1)) as client:
        fake.fail("_blob", status=0)
        fake.fail("_blob", 206, drop=True)
        with pytest.raises(errors.UnreachableError, match="Check the network"):
            download_competition(client, tmp_path / "raw")
        assert [
            n for n in listed(tmp_path / "raw") if not n.startswith(".")
        ] == []  # nothing under a real name
        download_competition(client, tmp_path / "raw")
    assert any("Range" in c.headers for c in fake.calls)
    assert listed(tmp_path / "raw") == NAMES


def test_a_partial_of_another_version_is_not_continued(
    fake: FakeKaggle, home: Path, tmp_path: Path
) -> None:
    with fake.patched(home), Client(patience=RetryPolicy(attempts=1)) as client:
        fake.fail("_blob", status=0)
        fake.fail("_blob", 206, drop=True)
        with pytest.raises(errors.UnreachableError):
            download_competition(client, tmp_path / "raw")
        fake.competitions[SLUG]["train.csv"] = random.Random(1).randbytes(300_000)
        download_competition(client, tmp_path / "raw")
    assert not any("Range" in c.headers for c in fake.calls)
    assert (tmp_path / "raw/train.csv").read_bytes() == fake.competitions[SLUG]["train.csv"]
    assert listed(tmp_path / "raw") == NAMES


def test_a_web_page_in_place_of_the_archive_is_not_saved(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.fail("_blob", 200, raw=b"<html>sorry</html>", times=9)
    with pytest.raises(errors.UnreachableError, match="web page"):
        download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == []


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda fake: fake.rules_accepted.clear(), errors.RulesError, f"competitions/{SLUG}/rules"),
        (
            lambda fake: fake.competitions.clear(),
            errors.NotFoundError,
            "Check the name of the competition",
        ),
    ],
)
def test_rules_and_names_have_their_own_messages(
    client: Client, fake: FakeKaggle, tmp_path: Path, change: object, kind: type, told: str
) -> None:
    change(fake)
    with pytest.raises(kind, match=told):
        download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == []


def linked(name: str) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def damaged(files: dict[str, bytes]) -> bytes:
    data = bytearray(make_zip(files))
    at = data.index(b"train.csv") + 1000
    data[at] ^= 0xFF
    return bytes(data)


def broken(files: dict[str, bytes]) -> bytes:
    """The bytes of train.csv are no stream that could be unpacked."""
    data = bytearray(make_zip(files))
    data[data.index(b"train.csv") + len("train.csv")] = (
        0x07  # a kind of block that deflate does not have
    )
    return bytes(data)


@pytest.mark.parametrize(
    ("archive", "told"),
    [
        (lambda files: b"not an archive", "not a zip"),
        (lambda files: make_zip(files)[:-50], "not a zip"),
        (damaged, "CRC"),
        (broken, "invalid block type"),
        (lambda files: make_zip(files | {"test.csv": b"short"}), "has 5 bytes"),
        (lambda files: make_zip({k: v for k, v in files.items() if k != "test.csv"}), "lacks it"),
        (lambda files: make_zip(files | {"../escape.csv": b"x"}), "leads out"),
        (lambda files: make_zip(files | {"/abs.csv": b"x"}), "leads out"),
        (lambda files: make_zip(files | {"a\\..\\b.csv": b"x"}), "leads out"),
        (lambda files: linked("train.csv"), "link"),
    ],
)
def test_a_bad_archive_leaves_nothing(
    client: Client, fake: FakeKaggle, tmp_path: Path, archive: object, told: str
) -> None:
    fake.archive = archive(fake.competitions[SLUG])
    with pytest.raises(errors.UnreachableError, match=told):
        download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == []
    assert listed(tmp_path) in (["home", "raw"], ["home"])


def test_an_archive_with_a_byte_wrong_is_damaged_or_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"id,prompt\n1,hello\n" * 9
    whole, found = make_zip({"train.csv": data}), 0
    monkeypatch.setattr("os.fsync", lambda _: None)
    for at in range(len(whole)):
        (tmp_path / "archive.zip").write_bytes(
            whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        )
        try:
            downloading.unpack_download(
                tmp_path / "archive.zip", tmp_path / "raw", {"train.csv": len(data)}
            )
        except zipfile.BadZipFile:
            found += 1
        else:
            assert (tmp_path / "raw/train.csv").read_bytes() == data
    assert found > len(whole) // 2


def test_a_damaged_stream_is_downloaded_afresh(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.archive = broken(fake.competitions[SLUG])
    with pytest.raises(errors.UnreachableError, match="the archive is damaged"):
        download_competition(client, tmp_path / "raw")
    fake.archive = None
    download_competition(client, tmp_path / "raw")
    assert not any("Range" in call.headers for call in fake.calls)
    assert listed(tmp_path / "raw") == NAMES


def test_what_may_be_continued_is_on_the_disk(
    client: Client, fake: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []

    def sync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().suffix, os.fstat(handle).st_size))

    monkeypatch.setattr("os.fsync", sync)
    fake.fail("_blob", status=0)
    fake.fail("_blob", 206, drop=True)
    download_competition(client, tmp_path / "raw")
    half, whole = (size for suffix, size in synced if suffix == ".part")
    assert 64_000 < half < whole == len(make_zip(fake.competitions[SLUG]))


def test_a_disk_too_small_is_said_before_anything_is_written(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    with pytest.raises(KitError, match=r"MB are needed, 0 MB are free"):
        download_competition(client, tmp_path / "raw")
    assert listed(tmp_path / "raw") == []


def test_a_disk_that_fills_up_leaves_no_half_file(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def full(_: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(atomic, "atomic_file", full)
    with pytest.raises(KitError, match="No space left on device"):
        download_competition(client, tmp_path / "raw")
    assert [n for n in listed(tmp_path / "raw") if not n.startswith(".")] == []
