"""Validate a submission as the graders of this competition do, and report every problem at once.

Use `validate_submission`. The rule: columns id and the three classes (others are ignored, any
order), each value in [0, 1], each row's sum rounded to 6 places equal to 1, and exactly the
sample's ids, each once. Numbers are written as in Python; TRUE is none.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.errors import DataError
from kit.evaluation.metrics import EPS
from kit.evaluation.submission_csv import (
    LISTED,
    SubmissionProblem,
    list_first,
    read_submission,
    row_problem,
)
from kit.predictions import parse_whole_numbers, read_csv, to_numbers
from kit.task import CLASSES, ID, PREDICTION_COLUMNS
from kit.wording import counted

SUM_PLACES = 6

# So many rows with the same numbers are worth a warning; two can be chance.
MIN_IDENTICAL = 3


@dataclass(frozen=True)
class ValidationReport:
    """The problems and warnings of a file of `rows` rows; without problems, a grader accepts it."""

    rows: int
    problems: tuple[SubmissionProblem, ...]
    warnings: tuple[SubmissionProblem, ...]

    @property
    def ok(self) -> bool:
        """Whether a grader would accept the file."""
        return not self.problems

    def as_dict(self) -> dict:
        """Return the report as plain values that JSON can hold."""
        return {"ok": self.ok} | asdict(self)


def validate_submission(path: str | Path, sample: str | Path | None = None) -> ValidationReport:
    """Check a prediction file against the rule, and against a sample submission's ids.

    Warnings are for what a grader accepts but a person would want to know: constant columns, three
    or more identical rows, probabilities of 0, ignored columns, ids that were not compared.

    Args:
        path: the prediction file; every defect is in the report, nothing is raised.
        sample: any CSV with the id column: sample_submission.csv, or test.csv.

    Raises:
        DataError: the sample itself cannot be used.
    """
    expected_ids = read_sample_ids(sample) if sample is not None else None
    submission = read_submission(Path(path))
    problems = list(submission.problems)
    warnings = list(submission.warnings)
    row_numbers = submission.row_numbers

    if submission.frame is not None:
        frame = _check_columns(submission.frame, problems, warnings)
        if frame.empty:
            problems.append(SubmissionProblem("empty", "no rows below the header"))
        else:
            _check_values(frame, row_numbers, problems, warnings)
            if ID in frame:
                sample_name = Path(sample or "").name
                _check_ids(frame[ID], row_numbers, expected_ids, sample_name, problems)
        if expected_ids is None:
            message = "no sample submission given: missing and unknown ids cannot be detected"
            warnings.append(SubmissionProblem("no-sample", message))
    return ValidationReport(len(row_numbers), tuple(problems), tuple(warnings))


def is_gradable(probabilities: np.ndarray) -> np.ndarray:
    """Return which rows of (N, 3) a grader accepts, bool (N,).

    That is values in [0, 1] that sum to 1 to 6 places; NaN and infinities are in no range.
    """
    in_range = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
    return in_range & _sums_to_one(probabilities)


def _sums_to_one(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.sum(axis=1).round(SUM_PLACES) == 1


def read_sample_ids(path: str | Path) -> pd.Series:
    """Read the ids of a sample submission, or of test.csv: unique whole numbers.

    Raises:
        DataError: the file has none.
    """
    table = read_csv(path, remove_nul=True)
    hint = "Give the competition's sample_submission.csv."
    if ID not in table:
        present = ", ".join(repr(column[:60]) for column in table.columns[:12])
        raise DataError(f"{path}: no column {ID} (it has {present})", hint)
    ids, whole = parse_whole_numbers(table[ID])
    if not whole.all() or len(np.unique(ids)) < len(ids) or table.empty:
        raise DataError(f"{path}: its ids are not unique whole numbers", hint)
    return pd.Series(ids, name=ID)


def _check_columns(
    frame: pd.DataFrame, problems: list[SubmissionProblem], warnings: list[SubmissionProblem]
) -> pd.DataFrame:
    """Report missing and ignored columns; return the frame with nearly right names corrected.

    The correction ("Winner Tie" for "winner_tie") lets the cells of such a column be checked in the
    same pass.
    """
    by_letters = {
        re.sub(r"[^a-z]", "", str(name).lower()): name
        for name in frame.columns
        if name not in PREDICTION_COLUMNS
    }
    corrections = {}
    for column in PREDICTION_COLUMNS:
        if column in frame:
            continue
        similar = by_letters.get(column.replace("_", ""))
        if similar is not None:
            corrections[similar] = column
        hint = f"; {similar[:60]!r} is not the same name" if similar is not None else ""
        problems.append(SubmissionProblem("missing-column", f"no column {column}{hint}"))

    ignored = [
        name[:60]
        for name in frame.columns
        if name not in PREDICTION_COLUMNS and name not in corrections
    ]
    if ignored:
        message = f"columns that graders ignore: {', '.join(map(repr, ignored[:LISTED]))}"
        warnings.append(SubmissionProblem("extra-column", message, count=len(ignored)))
    return frame.rename(columns=corrections)


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (N,), with NaN for text and empty cells, and a mask of the text cells (N,).

    A single text cell makes pandas read the whole column as text, and a grader fail.
    """
    values = to_numbers(column).to_numpy(np.float64)
    return values, np.isnan(values) & column.notna().to_numpy()


def _check_values(
    frame: pd.DataFrame,
    row_numbers: np.ndarray,
    problems: list[SubmissionProblem],
    warnings: list[SubmissionProblem],
) -> None:
    """Report cells that are not probabilities, and rows that do not sum to 1."""
    present = [name for name in CLASSES if name in frame]
    if not present:
        return

    columns = [_numbers(frame[name]) for name in present]
    values = np.column_stack([numbers.astype(np.float64) for numbers, _ in columns])
    is_text = np.column_stack([text for _, text in columns])
    out_of_range = np.isfinite(values) & ((values < 0) | (values > 1))
    checks: list[tuple[str, str, np.ndarray]] = [
        ("not-a-number", "cells that are not numbers", is_text),
        ("missing-value", "empty or NaN cells", np.isnan(values) & ~is_text),
        ("infinite", "infinite values", np.isinf(values)),
        ("out-of-range", "values outside [0, 1]", out_of_range),
    ]
    for kind, message, mask in checks:
        if mask.any():
            row, column = np.argwhere(mask)[0]
            names = ", ".join(np.array(present)[np.any(mask, axis=0)])
            first_cell = str(frame[present[column]].iloc[row])[:60]
            message += f" in {names}, first {first_cell!r}"
            problems.append(row_problem(kind, message, np.any(mask, axis=1), row_numbers))

    # Sums and repetitions mean something only for rows whose three cells are numbers.
    complete = np.isfinite(values).all(axis=1)
    if len(present) < len(CLASSES) or not complete.any():
        return
    values = values[complete]
    row_numbers = row_numbers[complete]
    wrong_sum = ~_sums_to_one(values)
    if wrong_sum.any():
        sums = values.sum(axis=1)
        worst = int(np.abs(sums - 1).argmax())
        message = f"the sum is not 1 to {SUM_PLACES} places but {sums[worst]:.9g}"
        if wrong_sum.sum() > 1:
            message += f" in row {row_numbers[worst]}, the worst one"
        problems.append(row_problem("row-sum", message, wrong_sum, row_numbers))
    _warn_about_values(values, row_numbers, warnings)


def _warn_about_values(
    values: np.ndarray, row_numbers: np.ndarray, warnings: list[SubmissionProblem]
) -> None:
    """Warn of constant columns, identical rows and probabilities of 0."""
    constant = (values == values[0]).all(axis=0) & (len(values) > 1)
    if constant.all():
        message = "every row is the same, as from a collapsed model"
        warnings.append(SubmissionProblem("constant", message, count=len(values)))
    elif constant.any():
        message = f"the same value in every row of {', '.join(np.array(CLASSES)[constant])}"
        warnings.append(SubmissionProblem("constant", message, count=len(values)))

    copies = pd.DataFrame(values).groupby([0, 1, 2])[0].transform("size").to_numpy()
    identical = copies >= MIN_IDENTICAL
    if not constant.all() and identical.any():
        message = (
            f"rows with the same numbers as at least {MIN_IDENTICAL - 1} other rows "
            f"(largest group: {copies.max()} rows)"
        )
        warnings.append(row_problem("identical", message, identical, row_numbers))

    certain = np.any(values <= EPS, axis=1)
    if certain.any():
        loss = -np.log(EPS)
        message = f"rows with a probability of 0, each costing {loss:.2f} if that class is true"
        warnings.append(row_problem("certain", message, certain, row_numbers))


def _check_ids(
    column: pd.Series,
    row_numbers: np.ndarray,
    expected: pd.Series | None,
    sample_name: str,
    problems: list[SubmissionProblem],
) -> None:
    """Report ids that are not 64-bit whole numbers or not unique, and missing and unknown ids."""
    values, whole = parse_whole_numbers(column)
    bad = ~whole
    if bad.any():
        first_cell = str(column.iloc[int(bad.argmax())])[:60]
        message = f"ids that are not 64-bit whole numbers, first {first_cell!r}"
        problems.append(row_problem("id", message, bad, row_numbers))

    ids = pd.Series(values[~bad])
    row_numbers = row_numbers[~bad]
    repeated = ids.duplicated(keep=False).to_numpy()
    if repeated.any():
        message = f"duplicate ids, first {int(ids[repeated].iloc[0])}"
        problems.append(row_problem("repeated-id", message, repeated, row_numbers))
    if expected is None:
        return

    if len(column) != len(expected):
        message = f"{counted(len(column), 'row')} where {sample_name} has {len(expected):,}"
        problems.append(SubmissionProblem("row-count", message))
    missing = expected[~expected.isin(ids)]
    if len(missing):
        listed = list_first("id", tuple(missing[:LISTED]), len(missing))
        message = f"no row for {listed} of {sample_name}"
        problems.append(SubmissionProblem("missing-id", message, count=len(missing)))
    unknown = ~ids.isin(expected).to_numpy()
    if unknown.any():
        message = f"ids that {sample_name} does not have, first {int(ids[unknown].iloc[0])}"
        problems.append(row_problem("unknown-id", message, unknown, row_numbers))
