"""Read how much main memory there is and how much is taken, and give back what is not in use."""

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes, in total and free now; None where the system does not say."""

    total: int | None
    free: int | None


def read_memory(root: Path = Path("/")) -> Memory:
    """Read how much main memory this process may use, which a container may limit.

    Uses /proc and the control group (version 2) on Linux, and POSIX elsewhere.

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

    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        # There is no control group, or its limit is "max".
        return Memory(total, free)

    return Memory(
        total=min(total or limit, limit),
        free=limit - used if free is None else min(free, limit - used),
    )


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
