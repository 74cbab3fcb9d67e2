"""Every problem of a prediction file at once, judged as the graders of this competition judge it.

The rule: columns id and the three classes (others and any order are free), each value in [0, 1], each row's sum
rounded to 6 places equal to 1, ids exactly the sample's, each once. Cells mean what `pandas.read_csv` makes of them.
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
    describe_row,
    list_rows,
    read_submission,
)
from kit.predictions import read_csv, to_numbers
from kit.task import CLASSES, ID, PREDICTION_COLUMNS

SUM_PLACES = 6
ALIKE = 3  # rows with the very same numbers before it is worth a word


@dataclass(frozen=True)
class ValidationReport:
    """What was found in a file of `rows` rows; a grader takes it if there are no problems, whatever the warnings."""

    rows: int
    problems: tuple[SubmissionProblem, ...]
    warnings: tuple[SubmissionProblem, ...]

    @property
    def ok(self) -> bool:
        """Whether a grader would take the file."""
        return not self.problems

    def as_dict(self) -> dict:
        """Plain values that JSON can hold."""
        return {"ok": self.ok} | asdict(self)


def validate_submission(path: str | Path, sample: str | Path | None = None) -> ValidationReport:
    """Checks a prediction file against the rule, and against the ids of a sample submission if there is one.

    Warns of what a grader takes but a person would want to know: constant columns, three or more identical rows,
    probabilities of 0, columns that nobody reads, ids that were not compared.

    Args:
        path: the prediction file; whatever is wrong with it is in the report.
        sample: any CSV with the id column: sample_submission.csv, or test.csv.

    Raises:
        DataError: the sample itself cannot be used.
    """
    wanted = sample_ids(sample) if sample is not None else None
    found = read_submission(Path(path))
    problems, warnings, lines = list(found.problems), list(found.warnings), found.lines
    if found.frame is not None:
        frame = _check_columns(found.frame, problems, warnings)
        if frame.empty:
            problems.append(SubmissionProblem("empty", "no rows below the header"))
        else:
            _check_numbers(frame, lines, problems, warnings)
            if ID in frame:
                _check_ids(frame[ID], lines, wanted, Path(sample or "").name, problems)
    if wanted is None and found.frame is not None:
        warnings.append(
            SubmissionProblem(
                "no-sample", "no sample submission: missing and unknown ids would not show"
            )
        )
    return ValidationReport(len(lines), tuple(problems), tuple(warnings))


def is_gradable(probabilities: np.ndarray) -> np.ndarray:
    """Which rows of (N, 3) a grader takes, bool (N,): finite, in [0, 1], and summing to 1 to 6 places."""
    inside = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)  # NaN is in no range
    return inside & _sums_to_one(probabilities)


def _sums_to_one(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.sum(axis=1).round(SUM_PLACES) == 1


def sample_ids(path: str | Path) -> pd.Series:
    """The ids of a sample submission, or of test.csv: whole numbers, each once.

    Raises:
        DataError: the file has none.
    """
    table = read_csv(path)
    hint = "Give the competition's sample_submission.csv."
    if ID not in table:
        raise DataError(
            f"{path}: no column {ID} (it has {', '.join(repr(c[:60]) for c in table.columns[:12])})",
            hint,
        )
    if not pd.api.types.is_integer_dtype(table[ID]) or not table[ID].is_unique or table.empty:
        raise DataError(f"{path}: its ids are not whole numbers, each once", hint)
    return table[ID]


def _check_columns(
    frame: pd.DataFrame, problems: list[SubmissionProblem], warnings: list[SubmissionProblem]
) -> pd.DataFrame:
    """Names what is missing; a column of nearly that name is then taken for it, so that its cells are checked too."""
    other = {
        re.sub(r"[^a-z]", "", str(c).lower()): c
        for c in frame.columns
        if c not in PREDICTION_COLUMNS
    }
    near = {}
    for column in (c for c in PREDICTION_COLUMNS if c not in frame):
        found = other.get(column.replace("_", ""))
        if found is not None:
            near[found] = column
        hint = f"; {found[:60]!r} is not the same name" if found is not None else ""
        problems.append(SubmissionProblem("missing-column", f"no column {column}{hint}"))
    extra = [c[:60] for c in frame.columns if c not in PREDICTION_COLUMNS and c not in near]
    if extra:
        names = ", ".join(map(repr, extra[:LISTED]))
        warnings.append(
            SubmissionProblem(
                "extra-column", f"columns that no grader reads: {names}", count=len(extra)
            )
        )
    return frame.rename(columns=near)


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which cells are text; where any are, pandas reads the whole column as text and a grader stops."""
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(), np.zeros(len(column), bool)
    values = to_numbers(column).to_numpy(np.float64)
    return values, np.isnan(values) & column.notna().to_numpy()


def _check_numbers(
    frame: pd.DataFrame,
    lines: np.ndarray,
    problems: list[SubmissionProblem],
    warnings: list[SubmissionProblem],
) -> None:
    present = [c for c in CLASSES if c in frame]
    if not present:
        return
    read = [_numbers(frame[c]) for c in present]
    values = np.column_stack([v.astype(np.float64) for v, _ in read])
    text = np.column_stack([t for _, t in read])
    for kind, what, mask in (
        ("not-a-number", "cells that are not numbers", text),
        ("missing-value", "empty or NaN cells", np.isnan(values) & ~text),
        ("infinite", "infinite values", np.isinf(values)),
        (
            "out-of-range",
            "values outside [0, 1]",
            np.isfinite(values) & ((values < 0) | (values > 1)),
        ),
    ):
        if mask.any():
            row, column = np.argwhere(mask)[0]
            names = ", ".join(
                c for c, found in zip(present, mask.any(axis=0), strict=True) if found
            )
            what += f" in {names}, first {str(frame[present[column]].iloc[row])[:60]!r}"
            problems.append(describe_row(kind, what, mask.any(axis=1), lines))
    whole = np.isfinite(values).all(axis=1)
    if len(present) < len(CLASSES) or not whole.any():
        return
    values, lines = values[whole], lines[whole]
    wrong = ~_sums_to_one(values)
    if wrong.any():
        sums = values.sum(axis=1)
        worst = int(np.abs(sums - 1).argmax())
        what = f"rows that do not sum to 1 to {SUM_PLACES} places, worst row {lines[worst]} with {sums[worst]:.9g}"
        problems.append(describe_row("row-sum", what, wrong, lines))
    _warn_of_values(values, lines, warnings)


def _warn_of_values(
    values: np.ndarray, lines: np.ndarray, warnings: list[SubmissionProblem]
) -> None:
    same = (values == values[0]).all(axis=0) & (len(values) > 1)
    size = pd.DataFrame(values).groupby([0, 1, 2])[0].transform("size").to_numpy()
    if same.all():
        warnings.append(
            SubmissionProblem(
                "constant", "every row is the same, as from a collapsed model", count=len(values)
            )
        )
    elif same.any():
        names = ", ".join(c for c, constant in zip(CLASSES, same, strict=True) if constant)
        warnings.append(
            SubmissionProblem(
                "constant", f"the same value in every row of {names}", count=len(values)
            )
        )
    if not same.all() and (size >= ALIKE).any():
        what = f"rows whose numbers stand in {ALIKE} rows or more, at most in {size.max()}"
        warnings.append(describe_row("identical", what, size >= ALIKE, lines))
    certain = (values <= EPS).any(axis=1)
    if certain.any():
        what = f"rows with a probability of 0, each costing {-np.log(EPS):.2f} if that class is the truth"
        warnings.append(describe_row("certain", what, certain, lines))


def _check_ids(
    column: pd.Series,
    lines: np.ndarray,
    wanted: pd.Series | None,
    sample: str,
    problems: list[SubmissionProblem],
) -> None:
    values, text = _numbers(column)
    bad = text | ~np.isfinite(values) | (values != np.floor(values))
    if bad.any():
        first = str(column.iloc[int(bad.argmax())])[:60]
        problems.append(
            describe_row("id", f"ids that are not whole numbers, first {first!r}", bad, lines)
        )
    ids, lines = pd.Series(values[~bad]), lines[~bad]
    repeated = ids.duplicated(keep=False).to_numpy()
    if repeated.any():
        what = f"ids that stand there more than once, first {int(ids[repeated].iloc[0])}"
        problems.append(describe_row("repeated-id", what, repeated, lines))
    if wanted is None:
        return
    if len(column) != len(wanted):
        problems.append(
            SubmissionProblem(
                "row-count", f"{len(column):,} rows where {sample} has {len(wanted):,}"
            )
        )
    missing, unknown = wanted[~wanted.isin(ids)], ~ids.isin(wanted).to_numpy()
    if len(missing):
        some = list_rows("id", tuple(missing[:LISTED]), len(missing))
        problems.append(
            SubmissionProblem("missing-id", f"no row for {some} of {sample}", count=len(missing))
        )
    if unknown.any():
        what = f"ids that {sample} does not have, first {int(ids[unknown].iloc[0])}"
        problems.append(describe_row("unknown-id", what, unknown, lines))
