"""Read how much main memory there is and how much is taken, and give back what is not in use."""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, in total and free now; None where the system does not say."""

    total: int | None
    free: int | None


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups is mounted, and its names: limit, use, files in memory."""

    folder: str
    limit: str
    used: str
    kept: str


# By the name of the controller in /proc/self/cgroup, which version 2 leaves empty.
_VERSIONS = {
    "": _Version("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Version(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
}


def read_memory(root: Path = Path("/")) -> Memory:
    """Read how much main memory this process may use, which a container may limit.

    Uses /proc and the control groups on Linux (cgroups(7) of its manual), and POSIX elsewhere.

    Args:
        root: folder of `proc` and `sys`.
    """
    total = free = None
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {
            name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in map(str.split, lines)
        }
        total = sizes.get("MemTotal")
        free = sizes.get("MemAvailable")
    except (OSError, ValueError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    for limit, used in _limits(root):
        total = min(total or limit, limit)
        free = limit - used if free is None else min(free, limit - used)
    return Memory(total, free)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of the control groups around this process that have both.

    A container, a batch system or systemd sets them. Files that the system keeps in memory only
    while there is room count as used there; they are left out, as Kubernetes leaves them out of a
    container's working set.
    """
    mount = root / "sys/fs/cgroup"
    for version, path in _groups(root):
        top = mount / version.folder
        group = top / path.lstrip("/")
        # A limit holds for all groups below it. Within a container the path may be the host's,
        # and only the top is there.
        for folder in (group, *group.parents):
            try:
                limit = int((folder / version.limit).read_text(encoding="ascii"))
                used = int((folder / version.used).read_text(encoding="ascii"))
                yield limit, used - _count_kept_files(folder, version)
            except (OSError, ValueError):
                # There is no such group, or its limit is "max".
                pass
            if folder == top:
                break


def _count_kept_files(group: Path, version: _Version) -> int:
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return int(dict(map(str.split, lines)).get(version.kept, 0))


def _groups(root: Path) -> list[tuple[_Version, str]]:
    """Return the control groups of this process that may limit its memory."""
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return [(version, "/") for version in _VERSIONS.values()]
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups += [(_VERSIONS[name], path) for name in controllers.split(",") if name in _VERSIONS]
    return groups


def peak_memory() -> int:
    """Return the most main memory that this process has taken so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_memory() -> int:
    """Return the main memory that this process takes now, in bytes; 0 where it is unknown."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Return to the system the memory that was freed, of which GNU's C library keeps much.

    Elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
