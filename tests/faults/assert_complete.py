"""What a folder holds, and whether every file in it is whole: the old one, the new one, or not there."""

import json
import re
import tomllib
from pathlib import Path

import pandas as pd
from pyarrow import parquet
from safetensors import safe_open

HIDDEN = re.compile(r"^\..*\.(tmp|old|part|partial|lock)$|^\.lock$")  # of work in progress
# What differs from run to run: times, Trainer's summary of the steps since it was started, the mark of a push.
VARYING = re.compile(
    rb'"(minutes|train_runtime|train_samples_per_second|train_steps_per_second|train_loss)": [-+.e0-9]+'
    rb'|(kit-push:|\\*"push\\*": \\*")[0-9a-f]{32}'
)


def is_unfinished(path: Path) -> bool:
    """Whether a path is in hidden work in progress, or in the checkpoints of an unfinished training."""
    return any(HIDDEN.match(part) or part == "checkpoints" for part in path.parts)


def contents(folder: Path) -> dict[str, bytes]:
    """Every visible file's bytes by its path below `folder`, without what may differ from run to run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not is_unfinished(inner):
            found[str(inner)] = VARYING.sub(b"", path.read_bytes())
    return found


def leftovers(folder: Path) -> list[str]:
    """Hidden work in progress, and checkpoints."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if is_unfinished(path.relative_to(folder))
    ]


def not_whole(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Files that are neither what they were nor what they would have become; both of these can be parsed."""
    return [
        name
        for name, data in contents(folder).items()
        if data not in (before.get(name), after.get(name))
    ]


def parse_all(folder: Path) -> None:
    """Reads every file of an undisturbed run; raises where one is not whole."""
    for name in contents(folder):
        parse(folder / name)


def parse(path: Path) -> None:
    """Reads a file wholly, as its suffix says; raises where it is not whole."""
    kind = path.suffix
    if kind in (".json", ".ipynb"):
        json.loads(path.read_text(encoding="utf-8"))
    elif kind == ".toml":
        tomllib.loads(path.read_text(encoding="utf-8"))
    elif kind == ".csv":
        assert path.read_bytes().endswith(b"\n"), "no line end at the end"
        pd.read_csv(path)
    elif kind == ".parquet":
        parquet.read_table(path)
    elif kind == ".safetensors":
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
