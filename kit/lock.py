"""One process at a time where two would spoil each other's work: an advisory lock that dies with its holder.

The kernel keeps it (flock on a hidden file), so of a process that was killed only that file is left, which stops
nobody and goes with the next lock. Windows, and network file systems that do not pass flock on, have none; there work
goes on without.
"""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.errors import HeldError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NOT_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what a file system without flock answers
READ_ONLY = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
}  # the command says it better


@contextlib.contextmanager
def held(folder: Path, name: str = "", wait: bool = False) -> Iterator[None]:
    """Holds `folder`, or what is called `name` in it, against other processes that would write there.

    The lock file, .lock or .NAME.lock in the folder, says who holds it and goes with the lock.

    Args:
        folder: made if it is not there, and removed again if nothing came of it.
        wait: wait for the other process, saying so, where its work is short or would be done twice.

    Raises:
        HeldError: another process holds it; names its PID and host.
    """
    path = _file(folder, name)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, folder / name, wait)
    except OSError as error:
        if error.errno not in READ_ONLY | NOT_HERE:
            raise
        handle = None
    try:
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
            os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty


def once(folder: Path, name: str, done: Callable[[], bool], make: Callable[[], object]) -> None:
    """Calls `make` for what is called `name` in `folder` unless it is `done`, by this process or by another one."""
    if done() and not _file(folder, name).exists():  # else another is ending, or was killed at its very end
        return
    with held(folder, name, wait=True):
        if not done():
            make()


def sole(handle: int, wait: bool = False) -> bool:
    """Takes an open file for this process until it is closed; False where another process has it, or none can say."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _file(folder: Path, name: str) -> Path:
    return folder / (f".{name}.lock" if name else ".lock")


def _acquire(path: Path, target: Path, wait: bool) -> int | None:
    """The open lock file, locked by this process and still the one of that name; None where there is no flock."""
    if fcntl is None:
        return None
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the holder before us has just removed the folder, which it had made
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            _lock(handle, target, wait)
            if _is_at(handle, path):  # else the holder before us has just removed it
                with contextlib.suppress(OSError):  # the disk is full; it is held all the same
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, target: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told = os.pread(handle, 300, 0)  # not by its name, which the holder may just have removed
        pid, _, host = told.decode("utf-8", "replace").strip().partition(" ")
        who = f"process {pid} on {host}" if pid.isdecimal() else "another process"
        if not wait:
            stop = f", or stop it (`kill {pid}` there)" if pid.isdecimal() else ""
            raise HeldError(f"{target} is in use by {who}", f"Wait until it has ended{stop}.") from None
        logging.getLogger("kit").warning("waiting for %s, which is busy with %s", who, target)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
