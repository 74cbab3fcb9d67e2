"""One table of references, runs and blends: log loss with its interval, on validation rows and on test rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit import frame as prediction
from kit.data.processed import Processed, open_processed
from kit.errors import DataError, RunError
from kit.rundir import HOLDOUT, RunDir
from kit.schema import ID, LABEL
from kit.scoring.bootstrap import interval
from kit.scoring.metrics import accuracy, log_loss, prior, row_losses
from kit.scoring.truth import align, read_truth, restrict

GROUP = "group"
OOF = "out-of-fold"
Truths = dict[str, pd.DataFrame]  # by split, "valid" and perhaps "test": id, label, group


@dataclass(frozen=True)
class Figures:
    """Log loss on some rows, its 95% bootstrap interval over prompts, and accuracy."""

    rows: int
    log_loss: float
    low: float
    high: float
    accuracy: float


@dataclass(frozen=True)
class Line:
    """One model of the comparison; figures are None where it has no predictions of those rows."""

    name: str
    valid: Figures | None = None
    test: Figures | None = None
    best_epoch: float | None = None
    parameters: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The lines, which rows "validation" means ("holdout" or "out-of-fold"), and the runs left out as unfinished."""

    lines: tuple[Line, ...]
    validation: str
    unfinished: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


def compare(
    runs: Sequence[str | Path], data: Path, *, frames: Sequence[tuple[str, Path]] = (), truth: Path | None = None
) -> Comparison:
    """Compares runs with uniform, the class prior, the Bayes floor where it is known, and other prediction frames.

    Args:
        runs: run directories. Their validation predictions are from training; of the test rows, their test.csv.
        data: the processed folder the runs were trained on.
        frames: (name, file) of further predictions; the ids decide whether they are of validation or of test rows,
            and files of one name share a line.
        truth: labels of the test rows, where known.

    Raises:
        RunError: no run has a finished part; runs that have no validation rows in common; a run of other data.
        DataError: a frame whose ids are neither the validation nor the test rows.
    """
    processed = open_processed(data)
    every = [RunDir.open(run) for run in runs]
    opened = [run for run in every if run.parts()]
    if not opened:
        every[0].require_parts()  # says what to do about it
    for run in opened:
        run.check_data(processed.digest("train"))
    kind = _validation(opened)
    train = read_truth(processed.folder / "train.parquet")
    valid = train
    if kind == HOLDOUT:
        valid = restrict(train, processed.train().select([ID]).take(processed.fold_rows(HOLDOUT)[1]).to_pandas())
    truths = {"valid": valid} | ({"test": _with_groups(read_truth(truth), processed)} if truth else {})
    lines = _references(processed, train if kind == OOF else train[~train[ID].isin(valid[ID])], truths)
    test_ids = set(processed.test()[ID].to_pylist())
    for run in opened:
        files = [run.part(HOLDOUT) / "valid.csv" if kind == HOLDOUT else run.path / "oof.csv", run.path / "test.csv"]
        lines.append(
            _line(run.name, [f for f in files if f.is_file()], truths, test_ids, **_training_figures(run, kind))
        )
    for name in dict.fromkeys(name for name, _ in frames):
        lines.append(_line(name, [file for other, file in frames if other == name], truths, test_ids))
    return Comparison(tuple(lines), kind, tuple(run.name for run in every if run not in opened))


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table."""
    head = columns(comparison)
    body = ["| " + " | ".join(row) + " |" for row in rows(comparison)]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *body]) + "\n"


def columns(comparison: Comparison) -> list[str]:
    """Column titles of `rows`."""
    scores = [f"{comparison.validation} log loss [95%]", "accuracy", "test log loss [95%]", "accuracy"]
    return ["model", *scores, "best epoch", "parameters", "minutes"]


def rows(comparison: Comparison) -> list[list[str]]:
    """The comparison's cells as text."""

    def of(figures: Figures | None) -> list[str]:
        if figures is None:
            return ["", ""]
        return [f"{figures.log_loss:.4f} [{figures.low:.4f}, {figures.high:.4f}]", f"{figures.accuracy:.3f}"]

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        [
            line.name,
            *of(line.valid),
            *of(line.test),
            number(line.best_epoch, ".2f"),
            number(line.parameters, ","),
            number(line.minutes, ".1f"),
        ]
        for line in comparison.lines
    ]


def _validation(runs: Sequence[RunDir]) -> str:
    """The rows that all runs have validation predictions of."""
    if all(run.done(HOLDOUT) for run in runs):
        return HOLDOUT
    if all((run.path / "oof.csv").is_file() for run in runs):
        return OOF
    lacking = next(run for run in runs if not run.done(HOLDOUT))
    again = f"train --recipe {lacking.path / 'recipe.toml'}"
    if lacking.baseline:
        again = f"baseline {lacking.baseline}"
    raise RunError(
        f"{lacking.path}: the runs have no validation rows in common; this one has no finished holdout",
        f"Run `kit {again} --fold holdout`, or every fold of each run.",
    )


def _references(processed: Processed, trained_on: pd.DataFrame, truths: Truths) -> list[Line]:
    """Uniform, the class prior of the rows trained on, and the Bayes floor if the rows are a sample's."""
    constants = {"uniform": np.full(3, 1 / 3), "class prior": prior(trained_on[LABEL].to_numpy())}
    lines = [
        Line(name, **{split: _figures(np.broadcast_to(row, (len(truth), 3)), truth) for split, truth in truths.items()})
        for name, row in constants.items()
    ]
    if floor := processed.floor():
        bayes = prediction.read(floor)
        known = {split: bayes[bayes[ID].isin(truth[ID])] for split, truth in truths.items()}
        lines.append(
            Line(
                "Bayes floor",
                **{
                    split: _figures(align(known[split], truth, str(floor))[0], truth) for split, truth in truths.items()
                },
            )
        )
    return lines


def _line(name: str, files: Sequence[Path], truths: Truths, test_ids: set[int], **training: Any) -> Line:
    """The figures of prediction files; the ids of each say which rows it is of."""
    figures: dict[str, Figures] = {}
    for file in files:
        found = prediction.read(file)
        ids = set(found[ID])
        split = next((split for split, truth in truths.items() if ids == set(truth[ID])), None)
        if split:
            figures[split] = _figures(align(found, truths[split], str(file))[0], truths[split])
        elif "test" in truths or ids != test_ids:  # without their truth, test predictions cannot be scored
            raise DataError(
                f"{file}: its {len(ids)} ids are neither the {len(truths['valid'])} validation rows nor the "
                f"{len(test_ids)} test rows",
                "Compare predictions of the same rows: `kit predict RUN --split valid` or `--split test`.",
            )
    return Line(name, **figures, **training)


def _figures(probabilities: np.ndarray, truth: pd.DataFrame) -> Figures:
    labels = truth[LABEL].to_numpy(np.int64)
    low, high = interval(row_losses(probabilities, labels), truth[GROUP].to_numpy())
    return Figures(len(labels), log_loss(probabilities, labels), low, high, accuracy(probabilities, labels))


def _with_groups(truth: pd.DataFrame, processed: Processed) -> pd.DataFrame:
    table = processed.test()
    groups = dict(zip(table[ID].to_pylist(), table[GROUP].to_pylist(), strict=True))
    unknown = truth[~truth[ID].isin(list(groups))]
    if len(unknown):
        raise DataError(
            f"the truth has id {unknown[ID].iloc[0]}, which test.csv does not have", "Give the truth of this test.csv."
        )
    return truth.assign(**{GROUP: truth[ID].map(groups)})


def _training_figures(run: RunDir, kind: str) -> dict[str, Any]:
    parts = run.parts()
    used = [parts[HOLDOUT]] if kind == HOLDOUT else [figures for name, figures in parts.items() if name != HOLDOUT]
    epochs = [part["best_epoch"] for part in used if part["best_epoch"] is not None]  # a baseline has no epochs
    return {
        "best_epoch": float(np.mean(epochs)) if epochs else None,
        "parameters": used[0]["parameters"],
        "minutes": sum(part["minutes"] for part in used),
    }
