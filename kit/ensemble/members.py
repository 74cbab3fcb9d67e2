"""Prediction files as members of a blend: called by the run they come from, and of one data set all of them.

A saved blend finds its members' test predictions by these names, so that their order on a command line is free.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kit.errors import DataError, RunError
from kit.predictions import read_predictions
from kit.run import Run
from kit.task import HOLDOUT

ORIGIN = "origin.json"


def run_of_file(path: str | Path) -> Path | None:
    """The run directory that a prediction file lies in, if it lies in one: RUN/test.csv, RUN/fold0/valid.csv."""
    folder = Path(path).resolve().parent
    if folder.name == HOLDOUT or re.fullmatch(r"fold\d+", folder.name):
        folder = folder.parent
    return folder if (folder / ORIGIN).is_file() else None


def member_name(path: str | Path) -> str:
    """What a blend calls the file: its run's name, or without a run the file's name less `.csv`."""
    run = run_of_file(path)
    return run.name if run else Path(path).name.removesuffix(".csv")


def is_of_no_run(files: Sequence[str | Path]) -> list[str]:
    """A note on each file outside run directories: nothing tells whether its model was trained on the fitted rows."""
    return [
        f"{Path(file).name} is of no run: its folds are not known"
        for file in files
        if run_of_file(file) is None
    ]


def read_members(files: Sequence[str | Path]) -> tuple[list[str], list[pd.DataFrame]]:
    """Names and prediction frames of files that are to be fitted or blended together.

    Raises:
        DataError: a file is not a prediction frame, or two have one name.
        RunError: two runs were trained on other rows or other folds, so that they never predict the same thing.
    """
    names = [member_name(file) for file in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        both = ", ".join(
            str(file) for file, name in zip(files, names, strict=True) if name == twice[0]
        )
        raise DataError(
            f"{both}: all called {twice[0]!r}, as a blend names its members",
            "Rename one of the files.",
        )
    data = {run: Run(run).origin.get("data") for run in map(run_of_file, files) if run}
    first = next(iter(data), None)
    other = next((run for run in data if data[run] != data[first]), None)
    if other is not None:
        raise RunError(
            f"{other} was trained on other rows or folds than {first}",
            "Blend runs of one processed folder; train one of them again on the other's.",
        )
    return names, [read_predictions(file) for file in files]
