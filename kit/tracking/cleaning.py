"""Delete runs, and what is left over beside them. Use `delete_run` and `find_leftovers`."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.errors import HeldError
from kit.run import Run
from kit.storage.lock import lock_holder
from kit.tracking.listing import unfinished_parts

# What a fold keeps while it is trained; a finished fold keeps it only if its process was killed.
_CHECKPOINTS = "checkpoints"

_CACHE_FOLDER = "cache"


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can be deleted, what it is, and its size in bytes."""

    path: Path
    what: str
    size: int


def delete_run(run: Run) -> None:
    """Delete a run with all its models and predictions.

    Raises:
        HeldError: it is being trained.
    """
    held = {name: holder for name, holder in unfinished_parts(run).items() if holder}
    if held:
        name, holder = next(iter(held.items()))
        raise HeldError(f"{run.path / name} is in use by {holder}", "Wait until it has ended.")
    for checkpoints in run.path.glob(f"*/{_CHECKPOINTS}*"):
        _delete(checkpoints)

    # Renamed first, so that a kill leaves no run with some of its files.
    doomed = run.path.with_name(f".{run.name}.deleted")
    run.path.replace(doomed)
    shutil.rmtree(doomed)


def find_leftovers(runs: Path, data: Path, kernels: Path) -> list[Leftover]:
    """Return what can be made again or is of no use any more.

    These are the caches of tokens and features in `data`, checkpoints of finished folds and of
    collapsed attempts, unfinished downloads and deletions in `runs`, and the outputs of kernels
    that were downloaded to `kernels`. Checkpoints that a training can continue from are kept.
    """
    found = list(_find_leftovers(runs, data, kernels))
    return [Leftover(path, what, size) for path, what in found if (size := _size(path)) is not None]


def delete_leftovers(leftovers: list[Leftover]) -> int:
    """Delete them, and return how many bytes that were."""
    for leftover in leftovers:
        _delete(leftover.path)
    return sum(leftover.size for leftover in leftovers)


def _find_leftovers(runs: Path, data: Path, kernels: Path) -> Iterator[tuple[Path, str]]:
    cache = data / _CACHE_FOLDER
    making = [path.name[1:].removesuffix(".lock") for path in cache.glob(".*.lock")]
    if cache.is_dir() and not any(lock_holder(cache, name) for name in making):
        yield cache, "cache, made again when needed"
    for metrics in sorted(runs.glob("*/*/metrics.json")):
        for path in sorted(metrics.parent.glob(f"{_CHECKPOINTS}*")):
            yield path, "checkpoints of a finished fold"
    for path in sorted(runs.glob(f"*/*/{_CHECKPOINTS}-of-*")):
        if not (path.parent / "metrics.json").is_file():
            yield path, "checkpoints of a collapsed attempt"
    for path in sorted(runs.glob(".*.output")):
        # The lock of `kit kernels output --runs`, which may be at it now.
        if not lock_holder(runs, f"{path.name[1:].removesuffix('.output')}.collect"):
            yield path, "unfinished download"
    for path in sorted(runs.glob(".*.deleted")):
        yield path, "unfinished deletion"
    for path in sorted(kernels.glob("*.output")):
        if not lock_holder(kernels, path.name):
            yield path, "downloaded output of a kernel"


def _size(path: Path) -> int | None:
    """Return the bytes of a file or folder, None if it has gone meanwhile."""
    if path.is_file():
        return path.stat().st_size
    files = [Path(place, name) for place, _, names in os.walk(path) for name in names]
    return sum(file.stat().st_size for file in files if file.is_file()) if path.exists() else None


def _delete(path: Path) -> None:
    """Delete a file or folder; of a link, what it leads to, too."""
    if path.is_symlink():
        shutil.rmtree(path.resolve(), ignore_errors=True)
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
