"""Read the contents of a folder, and check that every file in it is complete."""

import json
import re
import shutil
import sqlite3
import tempfile
import tomllib
from contextlib import closing
from pathlib import Path

import pandas as pd
from pyarrow import parquet
from safetensors import safe_open

# Temporary files, files moved aside, partial downloads, locks, and SQLite's record of a change.
HIDDEN = re.compile(r"^\..*\.(tmp|old|part|partial|lock)$|^\.lock$|^.*\.db-journal$")

# What the database of a sweep says of its trials, but for times.
TRIALS = """
    SELECT number, state, param_name, param_value
        FROM trials LEFT JOIN trial_params USING (trial_id)
    UNION ALL SELECT number, 'reported', step, intermediate_value
        FROM trials JOIN trial_intermediate_values USING (trial_id)
    UNION ALL SELECT number, 'told', key, value_json
        FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key != 'seconds'
    UNION ALL SELECT number, 'mean', objective, value FROM trials JOIN trial_values USING (trial_id)
    ORDER BY 1, 2, 3
"""

# What differs from run to run: times, the Trainer's summary of the steps since it was started,
# the mark of a push, and the minute in which a report was made.
VARYING = re.compile(
    rb'"(minutes|train_runtime|train_samples_per_second|train_steps_per_second|train_loss)"'
    rb": [-+.e0-9]+"
    rb"|(kit-push:|'push': ')[0-9a-f]{32}"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d UTC"
)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every finished file by its path in `folder`, without what varies."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or is_unfinished(name):
            continue
        data = describe_database(path) if path.suffix == ".db" else path.read_bytes()
        found[str(name)] = VARYING.sub(b"", data)
    return found


def describe_database(path: Path) -> bytes:
    """Return the trials in a database, as the next command finds them; the file is left alone."""
    with tempfile.TemporaryDirectory() as folder:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return repr(database.execute(TRIALS).fetchall() if tables[0] > 20 else []).encode()


def leftovers(folder: Path) -> list[str]:
    """Return the paths of unfinished work."""
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    return [str(name) for name in names if is_unfinished(name)]


def is_unfinished(path: Path) -> bool:
    """Return whether a path is hidden work in progress or a checkpoint of a training."""
    return any(HIDDEN.match(part) or part == "checkpoints" for part in path.parts)


def incomplete_files(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Return the files that are neither the old version nor the new one.

    A database, which grows trial by trial, has been read to its end, and that is enough.
    """
    return [
        name
        for name, data in contents(folder).items()
        if data not in (before.get(name), after.get(name)) and not name.endswith(".db")
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
