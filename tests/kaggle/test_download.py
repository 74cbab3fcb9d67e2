"""Check that `kit download` leaves whole files or none when something breaks."""

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
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

NAMES = ["sample_submission.csv", "test.csv", "train.csv"]


@pytest.fixture(autouse=True)
def train_csv(fake: FakeKaggle) -> bytes:
    """A train.csv that does not compress and so arrives in many chunks."""
    fake.competitions[SLUG]["train.csv"] = random.Random(0).randbytes(300_000)
    return fake.competitions[SLUG]["train.csv"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def visible_names_in(folder: Path) -> list[str]:
    """Without the hidden file of an unfinished download."""
    return [name for name in names_in(folder) if not name.startswith(".")]


def break_first_transfer(fake: FakeKaggle) -> None:
    """Break the archive's first transfer off in the middle."""
    # The request before it only asks for the address, and passes.
    fake.fail("_blob", status=0)
    fake.fail("_blob", 206, drop=True)


def ranges(fake: FakeKaggle) -> list[int]:
    """The offsets at which downloads were resumed."""
    headers = [call.headers for call in fake.calls if "Range" in call.headers]
    return [int(header["Range"].removeprefix("bytes=")[:-1]) for header in headers]


def test_all_files_arrive_and_nothing_else(
    client: Client, fake: FakeKaggle, tmp_path: Path, train_csv: bytes
) -> None:
    result = download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == NAMES
    contents = {name: (tmp_path / "raw" / name).read_bytes() for name in NAMES}
    assert contents == fake.competitions[SLUG]
    assert result.sizes["train.csv"] == len(train_csv)
    assert result.train_sha256 == hashlib.sha256(train_csv).hexdigest()
    assert not result.already


def test_progress_counts_to_the_end(client: Client, fake: FakeKaggle, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    download_competition(client, tmp_path / "raw", progress=lambda *report: reports.append(report))
    size = len(make_zip(fake.competitions[SLUG]))
    assert reports[-1] == (size, size)
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})


def test_only_an_unknown_train_csv_is_warned_about(
    client: Client, tmp_path: Path, train_csv: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (warning,) = download_competition(client, tmp_path / "raw").warnings
    assert "is not the version of November 2026" in warning
    assert "Kaggle may have updated it" in warning

    monkeypatch.setattr(downloading, "TRAIN_SHA256", hashlib.sha256(train_csv).hexdigest())
    assert download_competition(client, tmp_path / "raw").warnings == ()


def test_a_second_run_downloads_nothing(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard
) -> None:
    download_competition(client, tmp_path / "raw")
    before = len(fake.calls)
    assert download_competition(client, tmp_path / "raw", say=heard.lines.append).already
    assert [call.rpc.split("/")[1] for call in fake.calls[before:]] == ["ListDataFiles"]
    assert "there already" in heard.text


def test_a_file_of_another_size_is_overwritten_only_with_force(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.csv").write_text("mine")
    with pytest.raises(KitError, match=r"train\.csv is there already with 4 bytes.*300,000"):
        download_competition(client, tmp_path / "raw")
    assert (tmp_path / "raw/train.csv").read_text() == "mine"
    download_competition(client, tmp_path / "raw", force=True)
    assert (tmp_path / "raw/train.csv").stat().st_size == 300_000


def test_force_replaces_a_file_of_the_right_length_and_wrong_bytes(
    client: Client, tmp_path: Path, train_csv: bytes
) -> None:
    download_competition(client, tmp_path / "raw")
    (tmp_path / "raw/train.csv").write_bytes(train_csv[::-1])
    kept = download_competition(client, tmp_path / "raw")
    assert (kept.already, "--force downloads it again" in kept.warnings[0]) == (True, True)
    assert not download_competition(client, tmp_path / "raw", force=True).already
    assert (tmp_path / "raw/train.csv").read_bytes() == train_csv


def test_bytes_with_another_md5_are_downloaded_again(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard
) -> None:
    # The look at the address before it is damaged, too, and not read.
    fake.damaged_downloads = 2
    download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == NAMES
    assert len(heard.pauses) == 1


def test_damaged_bytes_are_an_error_and_are_not_kept(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.damaged_downloads = 99
    with pytest.raises(errors.UnreachableError, match="MD5"):
        download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


def test_the_md5_of_a_file_that_is_stored_compressed_is_not_compared(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.blob_headers = {
        "x-goog-stored-content-encoding": "gzip",
        "x-goog-hash": f"md5={'A' * 22}==",
    }
    download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == NAMES


def test_a_size_that_kaggle_lists_wrongly_is_a_warning(
    client: Client, fake: FakeKaggle, tmp_path: Path, train_csv: bytes
) -> None:
    real = fake.list_data_files

    def compressed_sizes(body: dict) -> dict:
        answer = real(body)
        for file in answer["files"]:
            file["totalBytes"] -= 1
        return answer

    fake.list_data_files = compressed_sizes
    result = download_competition(client, tmp_path / "raw")
    assert (tmp_path / "raw/train.csv").read_bytes() == train_csv
    assert result.sizes["train.csv"] == len(train_csv)
    assert "train.csv has 300,000 bytes, Kaggle lists 299,999" in " ".join(result.warnings)


def test_every_page_of_the_list_is_read(client: Client, fake: FakeKaggle) -> None:
    fake.competitions[SLUG] |= {f"extra/{size}.csv": b"x" * size for size in range(450)}
    assert downloading.competition_files(client, SLUG) == {
        name: len(data) for name, data in fake.competitions[SLUG].items()
    }
    assert len(fake.seen("ListDataFiles")) == 3


@pytest.mark.parametrize(
    "fault",
    [{"drop": True}, {"status": 206, "drop": True}, {"status": 503}, {"stall_s": 0.8, "status": 0}],
)
def test_a_broken_transfer_is_retried(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard, fault: dict
) -> None:
    # The first request only asks for the address.
    fake.fail("_blob", status=0)
    fake.fail("_blob", **fault)
    download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == NAMES
    assert len(heard.pauses) == 1


def test_a_half_download_is_resumed_and_not_restarted(
    client: Client, fake: FakeKaggle, tmp_path: Path, heard: Heard
) -> None:
    break_first_transfer(fake)
    download_competition(client, tmp_path / "raw", say=heard.lines.append)
    (start,) = ranges(fake)
    assert 64_000 < start <= len(make_zip(fake.competitions[SLUG])) // 2
    assert "continuing at" in heard.text


def test_a_later_run_resumes_where_an_earlier_one_gave_up(
    fake: FakeKaggle, home: Path, tmp_path: Path
) -> None:
    with fake.patched(home), Client(patience=RetryPolicy(attempts=1)) as client:
        break_first_transfer(fake)
        with pytest.raises(errors.UnreachableError, match="Check the network"):
            download_competition(client, tmp_path / "raw")
        assert visible_names_in(tmp_path / "raw") == []
        download_competition(client, tmp_path / "raw")
    assert ranges(fake)
    assert names_in(tmp_path / "raw") == NAMES


def test_a_partial_file_of_another_version_is_not_resumed(
    fake: FakeKaggle, home: Path, tmp_path: Path
) -> None:
    with fake.patched(home), Client(patience=RetryPolicy(attempts=1)) as client:
        break_first_transfer(fake)
        with pytest.raises(errors.UnreachableError):
            download_competition(client, tmp_path / "raw")
        fake.competitions[SLUG]["train.csv"] = random.Random(1).randbytes(300_000)
        download_competition(client, tmp_path / "raw")
    assert ranges(fake) == []
    assert (tmp_path / "raw/train.csv").read_bytes() == fake.competitions[SLUG]["train.csv"]
    assert names_in(tmp_path / "raw") == NAMES


def test_a_web_page_instead_of_the_archive_is_not_saved(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.fail("_blob", 200, raw=b"<html>sorry</html>", times=9)
    with pytest.raises(errors.UnreachableError, match="web page"):
        download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


@pytest.mark.parametrize(
    ("break_account", "error", "expected"),
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
    client: Client,
    fake: FakeKaggle,
    tmp_path: Path,
    break_account: Callable[[FakeKaggle], None],
    error: type[Exception],
    expected: str,
) -> None:
    break_account(fake)
    with pytest.raises(error, match=expected):
        download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


def zip_with_link(name: str) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def zip_with_wrong_byte(files: dict[str, bytes]) -> bytes:
    data = bytearray(make_zip(files))
    at = data.index(b"train.csv") + 1000
    data[at] ^= 0xFF
    return bytes(data)


def zip_with_bad_stream(files: dict[str, bytes]) -> bytes:
    """The bytes of train.csv begin with a block type that deflate does not have."""
    data = bytearray(make_zip(files))
    data[data.index(b"train.csv") + len("train.csv")] = 0x07
    return bytes(data)


@pytest.mark.parametrize(
    ("make_archive", "expected"),
    [
        (lambda files: b"not an archive", "not a zip"),
        (lambda files: make_zip(files)[:-50], "not a zip"),
        (zip_with_wrong_byte, "CRC"),
        (zip_with_bad_stream, "invalid block type"),
        (lambda files: make_zip(files | {"test.csv": b"short"}), "has 5 bytes"),
        (
            lambda files: make_zip({name: files[name] for name in files if name != "test.csv"}),
            "lacks it",
        ),
        (lambda files: make_zip(files | {"../escape.csv": b"x"}), "leads out"),
        (lambda files: make_zip(files | {"/abs.csv": b"x"}), "leads out"),
        (lambda files: make_zip(files | {"a\\..\\b.csv": b"x"}), "leads out"),
        (lambda files: zip_with_link("train.csv"), "link"),
    ],
)
def test_a_bad_archive_leaves_nothing(
    client: Client,
    fake: FakeKaggle,
    tmp_path: Path,
    make_archive: Callable[[dict[str, bytes]], bytes],
    expected: str,
) -> None:
    fake.archive = make_archive(fake.competitions[SLUG])
    with pytest.raises(errors.UnreachableError, match=expected):
        download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []
    assert names_in(tmp_path) in (["home", "raw"], ["home"])


def test_an_archive_with_one_wrong_byte_is_refused_or_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"id,prompt\n1,hello\n" * 9
    whole = make_zip({"train.csv": data})
    refused = 0
    monkeypatch.setattr("os.fsync", lambda _: None)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        (tmp_path / "archive.zip").write_bytes(changed)
        try:
            downloading.unpack_download(
                tmp_path / "archive.zip", tmp_path / "raw", {"train.csv": len(data)}
            )
        except zipfile.BadZipFile:
            refused += 1
        else:
            assert (tmp_path / "raw/train.csv").read_bytes() == data
    assert refused > len(whole) // 2


def test_a_damaged_archive_is_downloaded_from_the_start(
    client: Client, fake: FakeKaggle, tmp_path: Path
) -> None:
    fake.archive = zip_with_bad_stream(fake.competitions[SLUG])
    with pytest.raises(errors.UnreachableError, match="the archive is damaged"):
        download_competition(client, tmp_path / "raw")
    fake.archive = None
    download_competition(client, tmp_path / "raw")
    assert ranges(fake) == []
    assert names_in(tmp_path / "raw") == NAMES


def test_bytes_that_may_be_resumed_are_synced_to_the_disk(
    client: Client, fake: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []

    def sync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().suffix, os.fstat(handle).st_size))

    monkeypatch.setattr("os.fsync", sync)
    break_first_transfer(fake)
    download_competition(client, tmp_path / "raw")
    half, whole = (size for suffix, size in synced if suffix == ".part")
    assert 64_000 < half < whole == len(make_zip(fake.competitions[SLUG]))


def test_a_disk_too_small_is_an_error_before_anything_is_written(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    with pytest.raises(KitError, match=r"MB are needed, 0 MB are free"):
        download_competition(client, tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


def test_a_disk_that_fills_up_leaves_no_half_file(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def full(_: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(downloading, "atomic_file", full)
    with pytest.raises(KitError, match="No space left on device"):
        download_competition(client, tmp_path / "raw")
    assert visible_names_in(tmp_path / "raw") == []
