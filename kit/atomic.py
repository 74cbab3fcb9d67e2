"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kit.errors import KitError


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it becomes `path`, else it is removed.

    The data is on disk before the name is: a crash leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    if path.is_dir():
        raise KitError(f"{path} is a directory; a file is to be written there", "Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes 0600; a result is as readable as any other file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder: filled under a temporary name, then renamed over what was at `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():  # a folder cannot be replaced in one step: move the old one aside first
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            path.replace(aside / path.name)
            temporary.replace(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with the line ends it has."""
    with writing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Writes readable JSON; NaN and infinity are refused (`ValueError`), since JSON has no word for them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hex, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_overwrite(path: str | Path, force: bool = False) -> None:
    """Raises unless `path` is free or the user said `--force`."""
    if Path(path).exists() and not force:
        raise KitError(f"{path} exists already", "Add --force to overwrite it, or choose another name.")
