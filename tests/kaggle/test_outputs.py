"""Check that `download_output` leaves every file complete and as the notebook wrote it, or none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kaggle import OWNER, FakeKaggle
from training_output import output_list, with_output_list

from kit.errors import KitError
from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.outputs import download_output, output_addresses
from kit.kaggle.retry import RetryPolicy
from kit.kaggle.runtime.session import OUTPUT_LIST

REF = KernelRef(OWNER, "kit-train", 1)


@pytest.fixture
def finish(fake: FakeKaggle) -> Callable[[dict[str, bytes]], None]:
    """Save a completed kernel with these output files on the fake."""

    def finished(files: dict[str, bytes]) -> None:
        fake.kernel_script, fake.kernel_files = ["COMPLETE"], files
        fake.save_kernel({"slug": f"{OWNER}/kit-train", "text": "print()"})

    return finished


def test_every_page_of_files_and_the_log_are_downloaded(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    files = {f"runs/a/fold{n}/model.bin": bytes([n]) * n for n in range(230)}
    finish(files)
    result = download_output(client, REF, tmp_path / "out")

    assert {n: (tmp_path / "out" / n).read_bytes() for n in files} == files
    assert (tmp_path / "out/kit-train.log").read_text() == "hello\n"
    assert (len(result.files), result.compared) == (230, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "out"]


def test_files_are_compared_with_what_the_notebook_wrote(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    files = {"submission.csv": b"id\n1\n", "a/b.txt": b""}
    finish(with_output_list(files))
    assert download_output(client, REF, tmp_path / "out").compared


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"submission.csv": b"other"}, "has other bytes in submission.csv"),
        ({"submission.csv": b"id\n1\n", "gone.bin": b"x"}, "lacks gone.bin"),
    ],
)
def test_an_output_that_differs_from_its_list_is_not_kept(
    client: Client, finish: Callable, tmp_path: Path, written: dict, message: str
) -> None:
    finish({"submission.csv": b"id\n1\n", OUTPUT_LIST: output_list(written)})
    with pytest.raises(errors.UnreachableError, match=message):
        download_output(client, REF, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"<html>", b'{"files": ["a"]}', b'{"files": {"a": 1}}']
)
def test_another_notebooks_file_of_the_lists_name_is_no_list(
    client: Client, finish: Callable, tmp_path: Path, content: bytes
) -> None:
    finish({"submission.csv": b"id\n1\n", OUTPUT_LIST: content})
    assert not download_output(client, REF, tmp_path / "out").compared
    assert (tmp_path / "out" / OUTPUT_LIST).read_bytes() == content


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 403, "raw": b"<Error>SignatureDoesNotMatch</Error>", "times": 9},
        {"status": 200, "raw": b"<html>try later</html>", "times": 9},
        {"status": 500, "times": 99},
        {"drop": True, "times": 99},
    ],
)
def test_an_error_page_is_never_saved_as_the_file(
    client: Client, fake: FakeKaggle, finish: Callable, tmp_path: Path, fault: dict
) -> None:
    finish({"submission.csv": b"id\n1\n"})
    fake.fail("_blob", **fault)
    with pytest.raises(errors.KaggleError) as caught:
        download_output(client, REF, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "signed5ecret" not in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix == ".csv"] == []


def test_an_expired_address_is_renewed(
    client: Client, fake: FakeKaggle, finish: Callable, tmp_path: Path
) -> None:
    finish({"submission.csv": b"id\n1\n"})
    fake.fail("_blob", 403, raw=b"<Error>ExpiredToken</Error>")
    download_output(client, REF, tmp_path / "out")
    assert (tmp_path / "out/submission.csv").read_bytes() == b"id\n1\n"

    # One for the list, one for the new address, one for the log.
    assert len(fake.seen("ListKernelSessionOutput")) == 3


def test_an_interrupted_download_is_continued(
    fake: FakeKaggle, finish: Callable, home: Path, tmp_path: Path
) -> None:
    files = {"a.bin": bytes(range(256)) * 2000, "b.bin": bytes(range(255, -1, -1)) * 2000}
    finish(files)
    with fake.patched(home), Client(patience=RetryPolicy(attempts=1)) as client:
        fake.fail("_blob", 0)
        fake.fail("_blob", 206, drop=True)
        with pytest.raises(errors.UnreachableError):
            download_output(client, REF, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        download_output(client, REF, tmp_path / "out")

    assert {n: (tmp_path / "out" / n).read_bytes() for n in files} == files
    assert [c.headers["Range"].split("-")[0] for c in fake.calls if "Range" in c.headers] != []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "out"]


def test_an_earlier_output_is_replaced_only_with_force(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    files = {"submission.csv": b"id\n1\n", "runs/a/old.bin": b"x"}
    finish(with_output_list(files))
    download_output(client, REF, tmp_path / "out")
    with pytest.raises(KitError, match="exists already"):
        download_output(client, REF, tmp_path / "out")

    finish({"submission.csv": b"id\n2\n"})
    download_output(client, KernelRef(OWNER, "kit-train", 2), tmp_path / "out", force=True)
    assert (tmp_path / "out/submission.csv").read_bytes() == b"id\n2\n"
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.parametrize("mine", ["ledger.csv", ".env", "deep/submission.csv", "deep/notes.log"])
def test_other_files_are_not_replaced_even_with_force(
    client: Client, fake: FakeKaggle, finish: Callable, tmp_path: Path, mine: str
) -> None:
    finish({"submission.csv": b"id\n1\n"})
    for name in ("submission.csv", "kit-train.log", mine):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(KitError, match=f"holds {mine}"):
        download_output(client, REF, tmp_path / "out", force=True)
    assert (tmp_path / "out" / mine).read_text() == "mine"
    assert (tmp_path / "out/submission.csv").read_text() == "mine"

    # It is found before anything is downloaded.
    assert not [call for call in fake.calls if "_blob" in call.path]


def test_a_file_is_not_replaced_by_the_folder(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    finish({"submission.csv": b"id\n1\n"})
    (tmp_path / "out").write_text("mine")
    with pytest.raises(KitError, match="is a file"):
        download_output(client, REF, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_folder_without_its_own_name_is_refused(
    client: Client, finish: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    finish({"submission.csv": b"id\n1\n"})
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(KitError, match="not a folder that a download can replace"):
        download_output(client, REF, out, force=True)


def test_an_output_without_files_is_an_error(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    finish({})
    with pytest.raises(errors.KaggleError, match="no output files"):
        download_output(client, REF, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/cron.d/x", "a/../../b", "a\\..\\b"])
def test_a_file_name_outside_the_folder_is_refused(
    client: Client, finish: Callable, tmp_path: Path, name: str
) -> None:
    finish({name: b"x"})
    with pytest.raises(KitError, match="leads out of the folder"):
        download_output(client, REF, tmp_path / "out")


def test_an_output_that_is_named_like_the_log_is_kept(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    files = {"kit-train.log": b"the notebook's own", "kaggle-kit-train.log": b"and another"}
    finish(with_output_list(files))
    download_output(client, REF, tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert (tmp_path / "out/kaggle-kaggle-kit-train.log").read_text() == "hello\n"


def test_a_file_that_is_not_there_is_an_error_that_lists_the_others(
    client: Client, finish: Callable, tmp_path: Path
) -> None:
    finish(with_output_list({"runs/a/oof.csv": b"x"}))
    with pytest.raises(errors.KaggleError, match=r"it has kit_outputs\.json, runs/a/oof\.csv"):
        download_output(client, REF, tmp_path / "out", only=lambda name: name == "no.csv")
    assert not (tmp_path / "out").exists()


def test_a_list_that_repeats_a_page_ends(
    client: Client, fake: FakeKaggle, finish: Callable
) -> None:
    finish({"a.txt": b"x"})
    real = fake.list_kernel_session_output
    fake.list_kernel_session_output = lambda body: real(body) | {"nextPageToken": "0"}
    assert list(output_addresses(client, REF)) == ["a.txt"]
