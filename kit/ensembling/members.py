"""Name prediction files as members of a blend, and read those that belong together.

Use `read_members`. A member is called by the run that its file lies in, so a saved blend finds the
members' test predictions by name and the order of files on a command line is free.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kit.errors import DataError, RunError
from kit.fold_dir import METRICS_FILE
from kit.predictions import read_predictions
from kit.run import Run
from kit.storage.atomic import file_sha256
from kit.task import HOLDOUT, TEST_FILE


def run_of_file(path: str | Path) -> Path | None:
    """Return the run directory that a file lies in (RUN/test.csv, RUN/fold0/valid.csv), or None."""
    # Unlike Path.resolve, this raises nothing where a link leads to itself.
    folder = Path(os.path.realpath(path)).parent
    if folder.name == HOLDOUT or re.fullmatch(r"fold\d+", folder.name):
        folder = folder.parent
    return folder if Run(folder).origin_path.is_file() else None


def member_name(path: str | Path) -> str:
    """Return the name of the file's run, or outside a run the file's name without `.csv`."""
    run = run_of_file(path)
    return run.name if run else Path(path).name.removesuffix(".csv")


def baseline_members(members: Sequence[str | Path]) -> list[str]:
    """Return the names of those members that are runs of baselines, or files of such runs."""
    runs = [Path(path) if Path(path).is_dir() else run_of_file(path) for path in members]
    return [run.resolve().name for run in runs if run and is_baseline(run)]


def outdated_members(files: Sequence[str | Path]) -> list[str]:
    """Return what is known against those files that are test predictions of a run."""
    runs = {run_of_file(path): path for path in files if Path(path).name == TEST_FILE}
    return [text for run in runs if run and (text := Run(run).outdated_test)]


def is_baseline(run: Path) -> bool:
    """Return whether a folder is the run of a baseline."""
    return Run(run).origin_path.is_file() and bool(Run(run).baseline)


def check_run_of_file(path: str | Path) -> None:
    """Raise RunError if the run that a file lies in lacks a file, or has a changed one.

    Predictions that the run has not made yet are answered with the command that makes them.
    """
    folder = run_of_file(path)
    if not folder:
        return
    Run(folder).check_files(weights=False)

    run = Run(Path(path).parent)
    if run.has_begun and not Path(path).exists():
        refuse_missing_predictions(run, Path(path))


def refuse_missing_predictions(run: Run, file: Path) -> None:
    """Raise RunError, with the command to run, if the file is one that the run will have."""
    if file.name == run.oof_path.name:
        raise RunError(
            f"{file}: no such file: out-of-fold predictions need every fold",
            f"Run `{run.command} --fold all`.",
        )
    if file.name == run.test_path.name:
        raise RunError(f"{file}: no such file", f"Run `kit predict {run.path}`.")


def unknown_run_warnings(files: Sequence[str | Path]) -> list[str]:
    """Return a warning for each file outside a run directory, whose training rows are unknown."""
    return [
        f"{Path(file).name} is not in a run folder: make sure that its model was not trained on "
        "the rows it predicts"
        for file in files
        if run_of_file(file) is None
    ]


def refuse_repeated_paths(paths: Sequence[str | Path], copies: bool = True) -> None:
    """Raise DataError if two paths lead to one file or run, by a link or in another spelling.

    A member that is there twice would count twice.

    Args:
        copies: refuse copies too: files of the same content, and runs of the same training.
    """
    seen: dict[object, str | Path] = {}
    for path in map(Path, paths):
        # What is missing is reported by the functions that read it.
        try:
            stat = path.stat()
            identities: list[object] = [(stat.st_dev, stat.st_ino)]
            if copies:
                identities.append(_content(path))
        except OSError:
            continue

        first = next((seen[identity] for identity in identities if identity in seen), None)
        if first is not None:
            kind = "folder" if path.is_dir() else "file"
            same = identities[0] in seen
            problem = f"are the same {kind}" if same else "have the same content"
            hint = "Name each member once; --weights sets how much it counts."
            raise DataError(f"{first} and {path} {problem}", hint if copies else "Name it once.")
        seen |= dict.fromkeys(identities, path)


def _content(path: Path) -> tuple[str, ...]:
    """Return hashes that only copies share: of a file, or of what the folds of a run tell.

    A fold's metrics have the hashes of its model and the time that its training took.
    """
    if not path.is_dir():
        return (file_sha256(path),)
    metrics = sorted(path.glob(f"*/{METRICS_FILE}"))
    # A folder that holds nothing finished is no copy of another.
    return tuple(map(file_sha256, metrics)) or (str(path.resolve()),)


def read_members(files: Sequence[str | Path]) -> tuple[list[str], list[pd.DataFrame]]:
    """Read prediction files that are to be fitted or blended together.

    Returns:
        The members' names and their prediction frames.

    Raises:
        DataError: a file is not a prediction frame, is named twice, or two have one name.
        RunError: two runs were trained on different rows or folds, so their predictions do not
            match; or a run is not whole.
    """
    refuse_repeated_paths(files)
    names = [member_name(file) for file in files]
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        pairs = zip(files, names, strict=True)
        clashing = ", ".join(str(file) for file, name in pairs if name == duplicate)
        raise DataError(
            f"{clashing}: these files have the same member name, {duplicate!r}",
            "Rename one of the files, or name one file of each run.",
        )

    data = {run: Run(run).origin.get("data") for run in map(run_of_file, files) if run}
    first = next(iter(data), None)
    if first is not None:
        other = next((run for run in data if data[run] != data[first]), None)
        if other is not None:
            raise RunError(
                f"{other} was trained on different rows or folds than {first}",
                "Blend runs of one processed folder: train one of them again on the other's.",
            )
    for file in files:
        check_run_of_file(file)
    return names, [read_predictions(file) for file in files]
