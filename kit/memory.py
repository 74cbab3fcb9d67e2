"""Main memory as this process may use it: a container's limit is often far below the machine's."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes in all and those free now, each None where the system does not say."""

    total: int | None
    free: int | None


def memory(root: Path = Path("/")) -> Memory:
    """Reads /proc and the control group (version 2) on Linux, elsewhere what POSIX gives.

    Args:
        root: where `proc` and `sys` are.
    """
    total = free = None
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {
            name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in map(str.split, lines)
        }
        total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    except (OSError, ValueError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (
            int((root / "sys/fs/cgroup" / name).read_text())
            for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no control group, or "max"
        return Memory(total, free)
    return Memory(
        min(total or limit, limit), min(limit - used if free is None else free, limit - used)
    )
