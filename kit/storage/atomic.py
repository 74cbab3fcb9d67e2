"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.storage.lock import lock_handle

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAID = (
    "No space left",
    "quota exceeded",
    "File too large",
    "PytorchStreamWriter",
    "unexpected pos",
)  # by libraries
FOLDERS_OPEN = os.name == "posix"  # elsewhere a folder cannot be opened, nor locked


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it becomes `path`, else it is removed.

    The data is on disk before the name is: a crash leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    if path.is_dir():
        raise KitError(
            f"{path} is a directory; a file is to be written there", "Choose another name."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _telling(path):
        handle, temporary = _fresh(path, folder=False)
    try:
        with _telling(path, temporary):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.chmod(
                0o666 & ~_umask()
            )  # mkstemp makes 0600; a result is as readable as any other file
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder: filled under a temporary name, then renamed over what was at `path`.

    Where a folder is replaced there is a moment without either, so only what can be made again is written like this.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _telling(path):
        handle, temporary = _fresh(path, folder=True)
    try:
        with _telling(path, temporary):
            yield temporary
            _settle(temporary)
            temporary.chmod(0o777 & ~_umask())
            if (
                path.exists()
            ):  # a folder cannot be replaced in one step: move the old one aside first
                aside = temporary.with_suffix(".old")
                path.replace(aside)
                temporary.replace(path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """The same for files that others write under names of their own: each appears in `folder` whole."""
    folder = Path(folder)
    with _telling(folder):
        handle, temporary = _fresh(folder / "files", folder=True)
    try:
        with _telling(folder, temporary):
            yield temporary
            _settle(temporary)
            for path in sorted(temporary.iterdir()):
                path.chmod(0o666 & ~_umask())
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def save_array(path: Path, values: Any) -> None:
    """As numpy's own save, which says nothing where the disk is full at the very end of the file."""
    import numpy as np  # a command that writes no array does not wait for it

    content = io.BytesIO()
    np.save(content, values)
    path.write_bytes(content.getbuffer())


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room; torch, tokenizers and safetensors say so in errors of their own."""
    return getattr(error, "errno", None) in FULL or any(word in str(error) for word in SAID)


@contextlib.contextmanager
def _telling(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Makes errors name the file that was to be written, not the temporary one."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise KitError(
                f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}",
                "Free some space, or choose a folder on another disk. What stood there before is as it was.",
            ) from error
        if isinstance(error, OSError) and (
            temporary is None or str(error.filename) == str(temporary)
        ):
            error.filename = str(path)
        raise


def _settle(folder: Path) -> None:
    """Sees to it that the files' data are on disk before their names are."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as written:
                os.fsync(written.fileno())


def _fresh(path: Path, folder: bool) -> tuple[int, Path]:
    """A new temporary file or folder beside `path`, open and ours until it is closed; those of dead processes go."""
    for pattern in (f".{glob.escape(path.name)}.*.tmp", f".{glob.escape(path.name)}.*.old"):
        for stale in path.parent.glob(pattern):
            _remove_if_nobodys(stale)
    while True:
        if folder:
            temporary = Path(
                tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            )
            handle = (
                os.open(temporary, os.O_RDONLY)
                if FOLDERS_OPEN
                else os.open(os.devnull, os.O_RDONLY)
            )
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            temporary = Path(name)
        lock_handle(handle, wait=True)
        if temporary.exists():  # else another process took it for a dead one's, before it was ours
            return handle, temporary
        os.close(handle)


def _remove_if_nobodys(stale: Path) -> None:
    """Removes what a killed process left; a living one holds its own (`kit.storage.lock.lock_handle`)."""
    try:
        handle = os.open(stale, os.O_RDONLY)
    except OSError:
        return
    try:
        if lock_handle(handle):
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(
                missing_ok=True
            )
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with the line ends it has."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Writes readable JSON; NaN and infinity are refused (`ValueError`), since JSON has no word for them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def file_sha256(path: str | Path) -> str:
    """The file's SHA-256 in hex, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_overwrite(path: str | Path, force: bool = False) -> None:
    """Raises unless `path` is free or the user said `--force`."""
    if Path(path).exists() and not force:
        raise KitError(
            f"{path} exists already", "Add --force to overwrite it, or choose another name."
        )
