"""Write files and folders whole or not at all. Use `atomic_file`, `atomic_folder`, `write_json`.

Everything is written under a hidden temporary name in the same folder and renamed at the end, so
that a crash leaves the old file or the new one, never half of one. A link stays a link: what it
points to is written.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import KitError
from kit.storage.lock import lock_handle, remove_if_unlocked

if TYPE_CHECKING:
    import numpy as np

# What is in them leads to devices, and to what other programs have open.
STREAM_FOLDERS = {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}

# As many as Linux follows.
MAX_LINKS = 40

FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What torch, tokenizers and safetensors say about a full disk, in exceptions without an errno.
FULL_DISK_MESSAGES = (
    "No space left",
    "quota exceeded",
    "File too large",
    "PytorchStreamWriter",
    "unexpected pos",
)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Generator[Path]:
    """Yield a temporary path next to `path`, which replaces `path` on a clean exit.

    The data is on disk before the rename. If `path` is a link, all this is done to its target.

    Raises:
        KitError: `path` is a directory, a device or a pipe, or links to one or to a read-only file;
            or the disk is full.
    """
    path = _target_file(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)

    with _temporary(path, folder=False) as temporary:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """Yield a temporary folder next to `path`, which replaces `path` on a clean exit.

    While an old folder is replaced there is a moment with neither, so use this only for what can
    be made again. If `path` is a link, all this is done to its target.

    Raises:
        KitError: `path` links to itself, or the disk is full.
    """
    path = _follow_links(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)

    with _temporary(path, folder=True) as temporary:
        yield temporary
        _sync_files(temporary)
        temporary.chmod(0o777 & ~_umask())

        # A folder with files in it cannot be replaced in one step.
        old = temporary.with_suffix(".old")
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_files(folder: str | Path) -> Generator[Path]:
    """Yield a temporary folder, whose files are moved into `folder` one by one on a clean exit.

    For libraries that choose the file names themselves. Each file appears whole, but not all at
    the same time.

    Raises:
        KitError: the disk is full.
    """
    folder = Path(folder)

    with _temporary(folder / "files", folder=True) as temporary:
        yield temporary
        _sync_files(temporary)
        for path in sorted(temporary.iterdir()):
            path.chmod(0o666 & ~_umask())
            path.replace(folder / path.name)


def read_text_file(path: str | Path, newline: str | None = None) -> str:
    """Return UTF-8 text, for every file that a person may have saved.

    Editors and Excel put a byte order mark before it, which neither TOML nor JSON allows.

    Args:
        newline: as of `open`; "" leaves line ends unchanged.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is no UTF-8.
    """
    with Path(path).open(encoding="utf-8-sig", newline=newline) as file:
        return file.read()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with its line ends unchanged."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Write indented JSON atomically; raise ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def save_array(path: Path, values: "np.ndarray") -> None:
    """Write an array as `numpy.save` does, but raise OSError if the disk is full.

    numpy does not report a failure to write the last part of a file. This is not atomic: use it
    inside `atomic_folder`.
    """
    import numpy as np

    content = io.BytesIO()
    np.save(content, values)
    path.write_bytes(content.getbuffer())


def file_sha256(path: str | Path) -> str:
    """Return the file's SHA-256 in hex, without loading the file as a whole."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(path: str | Path) -> None:
    """Raise KitError unless a file can be written to `path`, before hours are spent on its content.

    Raises:
        KitError: it is a directory, a device or a pipe, or its folder cannot be written to.
    """
    path = _target_file(Path(path))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise KitError(f"{path}: {folder} is a file, not a folder", "Choose another folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KitError(f"{path}: permission denied in {folder}", "Choose another folder.")


def refuse_overwrite(path: str | Path, force: bool = False) -> None:
    """Raise KitError if `path` exists, unless `force`."""
    if Path(path).exists() and not force:
        raise KitError(
            f"{path} exists already", "Add --force to overwrite it, or choose another name."
        )


def disk_is_full(error: BaseException) -> bool:
    """Return whether an exception of any library means that the disk or the quota is full."""
    if getattr(error, "errno", None) in FULL_DISK_ERRNOS:
        return True
    return any(message in str(error) for message in FULL_DISK_MESSAGES)


def _target_file(path: Path) -> Path:
    """Return the file that is to be written: the path, or what it links to.

    Raises:
        KitError: it is a directory, or what a rename would replace for all programs, or is linked
            and read-only, as in the stores of DVC and git-annex.
    """
    target = _follow_links(path)
    if target.is_dir():
        raise KitError(f"{path} is a directory, not a file", "Choose another file name.")
    if (target.exists() and not target.is_file()) or target.absolute().parent in STREAM_FOLDERS:
        raise KitError(f"{path} is a device or a pipe, not a file", "Choose a file name.")
    if target != path and target.exists() and not os.access(target, os.W_OK):
        raise KitError(
            f"{path} links to {target}, which is read-only", "Remove the link, or choose another."
        )
    return target


def _follow_links(path: Path) -> Path:
    """Return what a path finally links to, which need not exist; the path if it is no link.

    A link in /dev is left as it is: it leads to a file where a stream was redirected to one.
    """
    target = path
    for _ in range(MAX_LINKS):
        if not target.is_symlink() or target.absolute().parent in STREAM_FOLDERS:
            return target
        target = target.parent / target.readlink()
    raise KitError(f"{path} is a link that leads to itself", "Remove it, or choose another name.")


@contextlib.contextmanager
def _temporary(path: Path, folder: bool) -> Generator[Path]:
    """Yield a new temporary file or folder next to `path`, and remove what is left of it."""
    with _explain_errors(path):
        handle, temporary = _create_temporary(path, folder)

    try:
        with _explain_errors(path, temporary):
            yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        os.close(handle)


def _create_temporary(path: Path, folder: bool) -> tuple[int, Path]:
    """Create a temporary file or folder, locked until its handle is closed.

    The lock tells it apart from those of killed processes, which are removed here.
    """
    prefix = f".{path.name}."
    for suffix in (".tmp", ".old"):
        for stale in path.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
            remove_if_unlocked(stale)

    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(".tmp", prefix, path.parent))
            # Windows cannot open a folder, and has no locks either.
            handle = os.open(temporary if os.name == "posix" else os.devnull, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(".tmp", prefix, path.parent)
            temporary = Path(name)

        lock_handle(handle, wait=True)
        if temporary.exists():
            return handle, temporary

        # Before it was locked, another process took it for a leftover and removed it: try again.
        os.close(handle)


@contextlib.contextmanager
def _explain_errors(path: Path, temporary: Path | None = None) -> Generator[None]:
    """Make errors name the file that was to be written, and explain a full disk."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise KitError(
                f"cannot write {path}: {getattr(error, 'strerror', None) or error}",
                "Free some space, or choose a folder on another disk. "
                "What was there before is unchanged.",
            ) from error

        # An error about another file, such as an input that is read meanwhile, keeps that name.
        if isinstance(error, OSError) and (
            temporary is None or str(error.filename) == str(temporary)
        ):
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    """Wait until the data of a file is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_files(folder: Path) -> None:
    """Wait until the data of all files in a folder is on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _umask() -> int:
    """Return the process's umask, which temporary files ignore and results should obey."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
