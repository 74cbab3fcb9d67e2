"""Read the contents of a folder, and check that every file in it is complete."""

import json
import re
import tomllib
from pathlib import Path

import pandas as pd
from pyarrow import parquet
from safetensors import safe_open

# Temporary files, files moved aside, partial downloads and locks.
HIDDEN = re.compile(r"^\..*\.(tmp|old|part|partial|lock)$|^\.lock$")

# What differs from run to run: times, the Trainer's summary of the steps since it was started,
# and the mark of a push.
VARYING = re.compile(
    rb'"(minutes|train_runtime|train_samples_per_second|train_steps_per_second|train_loss)"'
    rb": [-+.e0-9]+"
    rb"|(kit-push:|'push': ')[0-9a-f]{32}"
)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every finished file by its path in `folder`, without what varies."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not is_unfinished(name):
            found[str(name)] = VARYING.sub(b"", path.read_bytes())
    return found


def leftovers(folder: Path) -> list[str]:
    """Return the paths of unfinished work."""
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    return [str(name) for name in names if is_unfinished(name)]


def is_unfinished(path: Path) -> bool:
    """Return whether a path is hidden work in progress or a checkpoint of a training."""
    return any(HIDDEN.match(part) or part == "checkpoints" for part in path.parts)


def incomplete_files(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Return the files that are neither the old version nor the new one."""
    return [
        name
        for name, data in contents(folder).items()
        if data not in (before.get(name), after.get(name))
    ]


def different_files(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    """Return the names whose contents differ, or that only one of the two has."""
    names = sorted(ours.keys() | theirs.keys())
    return [name for name in names if ours.get(name) != theirs.get(name)]


def parse_all(folder: Path) -> None:
    """Parse every finished file in the folder; raise an error for one that is incomplete."""
    for name in contents(folder):
        parse_file(folder / name)


def parse_file(path: Path) -> None:
    """Parse a file completely, according to its suffix."""
    kind = path.suffix
    if kind in (".json", ".ipynb"):
        json.loads(path.read_text(encoding="utf-8"))
    elif kind == ".toml":
        tomllib.loads(path.read_text(encoding="utf-8"))
    elif kind == ".csv":
        assert path.read_bytes().endswith(b"\n"), "no newline at the end"
        pd.read_csv(path)
    elif kind == ".parquet":
        parquet.read_table(path)
    elif kind == ".safetensors":
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
