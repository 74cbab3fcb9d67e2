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

NOT_HERE = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}  # what a file system without flock answers
READ_ONLY = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
}  # the command says it better


@contextlib.contextmanager
def hold_lock(folder: Path, name: str = "", wait: bool = False) -> Iterator[None]:
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
    mine: list[
        int
    ] = []  # the open lock file, in what Ctrl-C cannot come in front of, as it can of an assignment
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(path, folder / name, wait, mine)
        except OSError as error:
            if error.errno not in READ_ONLY | NOT_HERE:
                raise
        yield
    except KeyboardInterrupt:
        if not mine:
            _remove_if_nobodys(path)
        raise
    finally:
        if mine:
            try:
                path.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
            except KeyboardInterrupt:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(mine.pop())
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty


def make_once(
    folder: Path, name: str, done: Callable[[], bool], make: Callable[[], object]
) -> None:
    """Calls `make` for what is called `name` in `folder` unless it is `done`, by this process or by another one."""
    if (
        done() and not _file(folder, name).exists()
    ):  # else another is ending, or was killed at its very end
        return
    with hold_lock(folder, name, wait=True):
        if not done():
            make()


def lock_handle(handle: int, wait: bool = False) -> bool:
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


def _acquire(path: Path, target: Path, wait: bool, mine: list[int]) -> None:
    """Puts the open lock file into `mine`, locked by this process and still of that name; nothing without flock."""
    if fcntl is None:
        return
    while True:
        try:
            mine.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        except (
            FileNotFoundError
        ):  # the holder before us has just removed the folder, which it had made
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            _lock(mine[0], target, wait)
            if _is_at(mine[0], path):  # else the holder before us has just removed it
                with contextlib.suppress(OSError):  # the disk is full; it is held all the same
                    os.ftruncate(mine[0], 0)
                    os.pwrite(mine[0], f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return
        except BaseException:
            os.close(mine.pop())
            raise
        os.close(mine.pop())


def _remove_if_nobodys(path: Path) -> None:
    """Removes a lock file that was just made when Ctrl-C came."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR)
        try:
            if lock_handle(handle) and _is_at(handle, path):
                path.unlink()
        finally:
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
            raise HeldError(
                f"{target} is in use by {who}", f"Wait until it has ended{stop}."
            ) from None
        logging.getLogger("kit").warning("waiting for %s, which is busy with %s", who, target)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
