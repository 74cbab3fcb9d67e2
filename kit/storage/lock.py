"""Let one process at a time work in a folder. Use `hold_lock`, or `make_once` for a shared result.

The lock is `flock` on a hidden file, so the kernel releases it when its process ends, however it
ends. A killed process leaves an unlocked file behind, which the next lock takes over and removes.
On file systems without `flock` there are no locks, and the work goes on without. Windows has no
`flock` either, and is not supported.

The package filelock is not used. In version 3.16 a process that is refused empties the lock file
that says who holds it, and an error such as ENOLCK counts as "locked", so that a waiting process
would wait for ever. Version 4.2 does neither, but requiring it rules out older installations, and
all of this module except two calls of `flock` would still be needed.
"""

import contextlib
import errno
import io
import logging
import os
import shutil
import socket
from collections.abc import Callable, Generator
from pathlib import Path

from kit.errors import HeldError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Errors after which the work goes on without a lock. A file system that has no locks answers with
# the first line. The second line means that the lock file cannot be written; the command then
# fails at its first result, with a better message than could be given here.
WITHOUT_LOCK = {
    *(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
}


@contextlib.contextmanager
def hold_lock(folder: Path, name: str = "", wait: bool = False) -> Generator[None]:
    """Lock `folder`, or the item called `name` in it, against other processes that write there.

    The lock file, `.lock` or `.NAME.lock` in the folder, contains the PID and the host of its
    holder and is removed on release.

    Args:
        folder: created if missing, and removed again if it is still empty on release.
        name: what is locked, where several parts of one folder have locks of their own.
        wait: log who holds the lock and wait for it, instead of raising an error.

    Raises:
        HeldError: another process holds the lock; the message has its PID and host.
    """
    path = _lock_path(folder, name)
    folder_is_new = not folder.exists()
    lock_file = None

    try:
        try:
            lock_file = _acquire(path, folder / name, wait)
        except OSError as error:
            if error.errno not in WITHOUT_LOCK:
                raise

        try:
            yield
        finally:
            if lock_file is not None:
                # Removed while it is locked: afterwards it may belong to the next process.
                try:
                    path.unlink(missing_ok=True)
                finally:
                    lock_file.close()

    except KeyboardInterrupt:
        # Ctrl-C may come before a new file is locked, or before a locked one is removed.
        remove_if_unlocked(path)
        raise

    finally:
        if folder_is_new:
            # Fails if something was written into the folder, or if nothing could create it.
            with contextlib.suppress(OSError):
                folder.rmdir()


def make_once(
    folder: Path, name: str, done: Callable[[], bool], make: Callable[[], object]
) -> None:
    """Call `make` under the lock `name` of `folder`, unless it is `done` here or elsewhere."""
    # A lock file next to a finished result belongs to a process that is about to release it, or
    # that was killed at its very end. Taking the lock waits for the one and tidies up the other.
    if done() and not _lock_path(folder, name).exists():
        return

    with hold_lock(folder, name, wait=True):
        if not done():
            make()


def lock_holder(folder: Path, name: str = "") -> str:
    """Return who holds a lock, such as "process 12 on host", or "" where it is free.

    The file is only read: to try the lock would refuse it to a process that wants it meanwhile.
    """
    try:
        text = _lock_path(folder, name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    pid, _, host = text.strip().partition(" ")
    if not pid.isdecimal():
        return ""
    if host == socket.gethostname():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return ""
        except (OSError, OverflowError):
            # It belongs to another user, and so it is there.
            pass
    return f"process {pid} on {host}"


def lock_handle(handle: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed; return False if it is locked, or cannot be."""
    try:
        _flock(handle, wait)
    except OSError:
        return False
    return True


def remove_if_unlocked(path: Path) -> None:
    """Remove a file or folder that a process left behind, unless a living process has it locked."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            if lock_handle(handle) and _is_at(handle, path):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _lock_path(folder: Path, name: str) -> Path:
    return folder / (f".{name}.lock" if name else ".lock")


def _acquire(path: Path, target: Path, wait: bool) -> io.FileIO:
    """Return the lock file, open and locked, with its holder written into it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # "a+" creates the file, but does not empty one that another process has locked.
            # Unlike a bare handle, a file object that Ctrl-C keeps from being assigned is closed.
            file = io.FileIO(path, "a+")
        except FileNotFoundError:
            # The previous holder had created the folder, and has just removed it.
            continue

        try:
            _lock_or_refuse(file, target, wait)
            if _is_at(file.fileno(), path):
                _write_holder(file)
                return file
        except BaseException:
            file.close()
            raise

        # The previous holder removed this file between our opening and locking it.
        file.close()


def _lock_or_refuse(file: io.FileIO, target: Path, wait: bool) -> None:
    """Lock the open file, or wait until it can be locked, or raise HeldError with its holder."""
    try:
        _flock(file, wait=False)
        return
    except BlockingIOError:
        # Read through the open file: the holder may just have removed its name.
        file.seek(0)
        pid, _, host = file.read(300).decode("utf-8", "replace").strip().partition(" ")

    # The holder may not have written its line yet, or had no space for it.
    known = pid.isdecimal()
    holder = f"process {pid} on {host}" if known else "another process"
    if not wait:
        stop = f", or stop it (`kill {pid}` on that machine)" if known else ""
        raise HeldError(f"{target} is in use by {holder}", f"Wait until it has ended{stop}.")

    logging.getLogger("kit").warning("waiting for %s, which is busy with %s", holder, target)
    _flock(file, wait=True)


def _flock(file: io.FileIO | int, wait: bool) -> None:
    """Lock an open file; raise BlockingIOError if another process has it locked, unless `wait`."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_holder(file: io.FileIO) -> None:
    # On a full disk the lock still holds, but the file cannot say who holds it.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())


def _is_at(handle: int, path: Path) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
