"""A prediction file as a grader's pandas reads it, with everything odd about the file itself found on the way.

Row numbers are a spreadsheet's, the header being row 1, whatever blank lines and line breaks in cells there are.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.task import ID

LISTED = 10  # row numbers and ids named for one problem


@dataclass(frozen=True)
class SubmissionProblem:
    """One kind of problem: `count` things have it; `rows` are the first of their row numbers, the header being 1."""

    kind: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return (
            f"{self.message} ({list_rows('row', self.rows, self.count)})"
            if self.rows
            else self.message
        )


@dataclass(frozen=True)
class SubmissionFile:
    """What a file holds.

    Attributes:
        frame: the N rows below the header, cells as pandas reads them; None where nothing can be read.
        lines: (N,) the row number of each.
        problems: what a grader stumbles over before it looks at any number.
        warnings: what it takes, but a person would want to know.
    """

    frame: pd.DataFrame | None
    lines: np.ndarray
    problems: tuple[SubmissionProblem, ...]
    warnings: tuple[SubmissionProblem, ...] = ()


def describe_row(kind: str, message: str, mask: np.ndarray, lines: np.ndarray) -> SubmissionProblem:
    """A problem of the rows (N,) in `mask`, whose numbers are `lines` (N,)."""
    return SubmissionProblem(kind, message, tuple(lines[mask][:LISTED].tolist()), int(mask.sum()))


def list_rows(noun: str, some: tuple, count: int) -> str:
    """ "rows 2, 3 and 9", or the first of them and how many more of all `count` there are."""
    if count == 1:
        return f"{noun} {some[0]}"
    if count > len(some):
        return f"{noun}s {', '.join(map(str, some))} and {count - len(some):,} more"
    return f"{noun}s {', '.join(map(str, some[:-1]))} and {some[-1]}"


def read_submission(path: Path) -> SubmissionFile:
    """Reads a file of any content: what is wrong with it is in the result, never raised.

    Text that is not UTF-8 and columns that commas do not separate are problems, and are read all the same, so that
    the cells can be checked too.
    """
    problems: list[SubmissionProblem] = []
    warnings: list[SubmissionProblem] = []
    frame, lines = _table(path, problems, warnings)
    return SubmissionFile(frame, lines, tuple(problems), tuple(warnings))


def _table(
    path: Path, problems: list[SubmissionProblem], warnings: list[SubmissionProblem]
) -> tuple[pd.DataFrame | None, np.ndarray]:
    nothing = None, np.empty(0, np.int64)
    try:
        text = _decode(path.read_bytes(), problems)
    except OSError as error:
        problems.append(SubmissionProblem("unreadable", f"cannot be read: {error.strerror}"))
        return nothing
    if not text.strip():
        problems.append(SubmissionProblem("empty", "the file is empty"))
        return nothing
    separator = _separator(text, problems)
    lines, widths, header = _scan(text, separator)
    if header and ID not in header and header[0].strip().isdecimal():
        problems.append(
            SubmissionProblem(
                "no-header", "the header is missing: the first row holds numbers", (1,)
            )
        )
    expected = max(
        widths[:2], default=0
    )  # as pandas: the first row may be wider than the header, later ones not
    long = widths > expected
    if long.any():
        problems.append(
            describe_row("ragged", f"rows with more than {expected} cells", long, lines)
        )
    if expected > len(header):
        more = expected - len(header)
        warnings.append(
            SubmissionProblem(
                "shifted", f"the rows have {more} more cells than the header: the first is skipped"
            )
        )
    try:
        columns = (
            range(len(header)) if long.any() else None
        )  # cuts the long rows short instead of stopping
        frame = pd.read_csv(io.StringIO(text), sep=separator, usecols=columns, low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        problems.append(
            SubmissionProblem("unreadable", f"not a CSV file: {str(error).strip()[:120]}")
        )
        return nothing
    lines = lines[1:]
    if len(lines) != len(
        frame
    ):  # quoting that the two readers see differently: number the rows as pandas does
        lines = np.arange(2, len(frame) + 2)
    return frame.reset_index(drop=True), lines


def _decode(data: bytes, problems: list[SubmissionProblem]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        row = () if wide else (data[: error.start].count(b"\n") + 1,)
        what = "UTF-16 text" if wide else f"byte 0x{data[error.start]:02x}"
        problems.append(
            SubmissionProblem("encoding", f"not UTF-8 text: {what}; save it again as UTF-8", row)
        )
        return data.decode("utf-16" if wide else "latin-1", errors="replace")


def _separator(text: str, problems: list[SubmissionProblem]) -> str:
    header = re.match(r"\s*([^\r\n]*)", text)[1]
    other = next((c for c in ";\t|" if "," not in header and c in header), None)
    if other:
        problems.append(
            SubmissionProblem("delimiter", f"columns are separated by {other!r}, not by ','")
        )
    return other or ","


def _scan(text: str, separator: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Row number and number of cells of each row that is not blank, and the header's cells."""
    lines, widths, header = [], [], []
    try:
        for line, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=separator), 1
        ):
            if len(cells) > 1 or (cells and cells[0].strip(" \t")):
                header = header or cells
                lines.append(line)
                widths.append(len(cells))
    except csv.Error:  # a cell beyond the reader's limit: pandas, which has none, is asked next
        return np.empty(0, np.int64), np.empty(0, np.int64), header
    return np.array(lines), np.array(widths), header
