"""Check that files and folders appear whole or not at all."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.storage import atomic
from kit.storage.atomic import (
    atomic_file,
    atomic_folder,
    file_sha256,
    refuse_overwrite,
    require_writable,
    write_json,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_gets_its_name_only_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "deep" / "er" / "result.csv"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        # Only a rename within one file system is atomic.
        assert temporary.parent == target.parent

    assert target.read_text() == "half"
    assert names_in(target.parent) == ["result.csv"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_only_the_old_file(tmp_path: Path, error: type):
    target = tmp_path / "result.csv"
    target.write_text("old")

    def fail() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("new but")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["result.csv"]


def test_data_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (events.append("replace"), replace(path, to))
    )

    write_text(tmp_path / "x.txt", "x")

    assert events == ["fsync", "replace"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_results_get_the_permissions_of_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x.txt", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        assert os.umask(before) == mask

    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_directory_of_the_same_name_is_an_error(tmp_path: Path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(KitError, match="taken is a directory"), atomic_file(tmp_path / "taken"):
        pass


def test_a_device_or_pipe_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A rename over /dev/null would take it from all programs."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/stdout").symlink_to(tmp_path / "redirected.txt")
    (tmp_path / "redirected.txt").touch()
    monkeypatch.setattr(atomic, "STREAM_FOLDERS", {tmp_path / "dev"})
    for path in (tmp_path / "pipe", tmp_path / "dev/stdout"):
        with pytest.raises(KitError, match="is a device or a pipe"):
            write_text(path, "x")
        with pytest.raises(KitError, match="is a device or a pipe"):
            require_writable(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "dev/stdout").is_symlink()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool):
    target = tmp_path / "far" / "result.csv"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/other.csv").symlink_to("../far/result.csv")
    link = tmp_path / "link.csv"
    link.symlink_to("near/other.csv")

    require_writable(link)
    with atomic_file(link) as temporary:
        temporary.write_text("new")
        assert temporary.parent.resolve() == target.parent

    assert target.read_text() == "new"
    assert link.readlink() == Path("near/other.csv")
    assert names_in(target.parent) == ["result.csv"]


def test_a_link_to_a_folder_stays_and_its_target_is_replaced(tmp_path: Path):
    target = tmp_path / "far"
    target.mkdir()
    (target / "old").touch()
    (tmp_path / "link").symlink_to(target)
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").touch()
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["far", "link", "new"]


def test_a_link_that_cannot_be_followed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stored").write_text("old")
    (tmp_path / "link").symlink_to("stored")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name, message in (("loop", "leads to itself"), ("folder", "folder is a directory")):
        with pytest.raises(KitError, match=message):
            write_text(tmp_path / name, "new")

    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "stored")
    for write in (require_writable, lambda path: write_text(path, "new")):
        with pytest.raises(KitError, match=r"link links to .*stored, which is read-only"):
            write(tmp_path / "link")
    assert (tmp_path / "stored").read_text() == "old"


def test_what_cannot_be_written_is_known_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "file")
    require_writable(tmp_path / "new/folder/file")
    with pytest.raises(KitError, match="is a file, not a folder"):
        require_writable(tmp_path / "file/other")
    with pytest.raises(KitError, match="is a directory"):
        require_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(KitError, match="permission denied"):
        require_writable(tmp_path / "new/file")


def test_a_folder_replaces_the_old_one_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "tokens"
    target.mkdir()
    (target / "old").write_text("old")

    with atomic_folder(target) as temporary:
        (temporary / "new").write_text("new")
        assert names_in(target) == ["old"]
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["new", "tokens"]


def test_an_error_while_filling_a_folder_leaves_only_the_old_one(tmp_path: Path):
    target = tmp_path / "tokens"
    target.mkdir()
    (target / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "new").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names_in(tmp_path) == ["old", "tokens"]


def test_text_is_utf8_with_unchanged_line_ends(tmp_path: Path):
    write_text(tmp_path / "x.txt", "a\r\nb\nç 漢字 🙂")
    assert (tmp_path / "x.txt").read_bytes() == "a\r\nb\nç 漢字 🙂".encode()


def test_json_refuses_nan_and_infinity(tmp_path: Path):
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2.5, None]}

    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "y.json", [value])
    assert names_in(tmp_path) == ["x.json"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_an_existing_file_is_refused_without_force(tmp_path: Path):
    refuse_overwrite(tmp_path / "x")

    (tmp_path / "x").touch()
    refuse_overwrite(tmp_path / "x", force=True)
    with pytest.raises(KitError, match="exists already") as caught:
        refuse_overwrite(tmp_path / "x")
    assert "--force" in caught.value.hint
