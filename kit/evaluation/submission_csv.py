"""Read a prediction file as a grader's pandas does, and list what is wrong with the file itself.

Use `read_submission`; `validate` judges the numbers. Row numbers are a spreadsheet's: the header is
row 1, blank lines count, and a line break inside a cell starts no new row.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.predictions import parse_csv
from kit.storage.contents import describe_impostor
from kit.task import ID

LISTED = 10  # row numbers and ids named for one problem


@dataclass(frozen=True)
class SubmissionProblem:
    """One kind of problem: its message, the first rows that have it, and how many do in all."""

    kind: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        if not self.rows:
            return self.message
        return f"{self.message} ({list_first('row', self.rows, self.count)})"


@dataclass(frozen=True)
class SubmissionFile:
    """The content of a prediction file.

    Attributes:
        frame: the N rows below the header, ids as text and other cells as pandas reads them; None
            where nothing can be read.
        row_numbers: (N,) the spreadsheet row of each.
        problems: defects that make a grader fail before it looks at any number.
        warnings: oddities that a grader accepts, but a person would want to know.
    """

    frame: pd.DataFrame | None
    row_numbers: np.ndarray
    problems: tuple[SubmissionProblem, ...]
    warnings: tuple[SubmissionProblem, ...] = ()


def row_problem(
    kind: str, message: str, mask: np.ndarray, row_numbers: np.ndarray
) -> SubmissionProblem:
    """Return a problem of the rows in `mask` (N,), given the row numbers (N,)."""
    first_rows = row_numbers[mask][:LISTED]
    return SubmissionProblem(kind, message, tuple(first_rows.tolist()), int(mask.sum()))


def list_first(noun: str, values: tuple, count: int) -> str:
    """Return "rows 2, 3 and 9", or "rows 2, 3, 9 and 14 more" where `count` exceeds the values."""
    if count == 1:
        return f"{noun} {values[0]}"
    if count > len(values):
        return f"{noun}s {', '.join(map(str, values))} and {count - len(values):,} more"
    return f"{noun}s {', '.join(map(str, values[:-1]))} and {values[-1]}"


def read_submission(path: Path) -> SubmissionFile:
    """Read a file of any content; every defect is in the result, nothing is raised.

    Text that is not UTF-8 and separators other than the comma are problems, but the file is read
    all the same, so that its cells can be checked too.
    """
    problems: list[SubmissionProblem] = []
    warnings: list[SubmissionProblem] = []
    frame, row_numbers = _read_table(path, problems, warnings)
    return SubmissionFile(frame, row_numbers, tuple(problems), tuple(warnings))


def _read_table(
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
    impostor = describe_impostor(path)
    if impostor:
        problems.append(SubmissionProblem("unreadable", f"the file {impostor}"))
        return nothing

    separator = _find_separator(text, problems)
    row_numbers, widths, header = _scan_rows(text, separator)
    if header and ID not in header and header[0].strip().isdecimal():
        message = "the header is missing: the first row holds numbers"
        problems.append(SubmissionProblem("no-header", message, (1,)))

    # pandas lets the first data row be wider than the header (it then takes the first cells as an
    # index), but no later row wider than these two.
    expected = max(widths[:2], default=0)
    too_long = widths > expected
    if too_long.any():
        message = f"rows with more than {expected} cells"
        problems.append(row_problem("ragged", message, too_long, row_numbers))
    if expected > len(header):
        surplus = expected - len(header)
        message = f"the rows have {surplus} more cells than the header: the first is skipped"
        warnings.append(SubmissionProblem("shifted", message))

    # Naming the columns makes pandas cut long rows short instead of stopping at the first of them.
    columns = range(len(header)) if too_long.any() else None
    try:
        frame = parse_csv(text, sep=separator, usecols=columns)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        message = f"not a CSV file: {str(error).strip()[:120]}"
        problems.append(SubmissionProblem("unreadable", message))
        return nothing

    # The two readers may see odd quoting differently: then number the rows as pandas counts them.
    row_numbers = row_numbers[1:]
    if len(row_numbers) != len(frame):
        row_numbers = np.arange(2, len(frame) + 2)
    return frame.reset_index(drop=True), row_numbers


def _decode(data: bytes, problems: list[SubmissionProblem]) -> str:
    """Return the text, as UTF-16 or Latin-1 with a problem where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        rows = () if is_utf16 else (data[: error.start].count(b"\n") + 1,)
        found = "UTF-16 text" if is_utf16 else f"byte 0x{data[error.start]:02x}"
        message = f"not UTF-8 text: {found}; save it again as UTF-8"
        problems.append(SubmissionProblem("encoding", message, rows))
        return data.decode("utf-16" if is_utf16 else "latin-1", errors="replace")


def _find_separator(text: str, problems: list[SubmissionProblem]) -> str:
    """Return the separator of the first line that is not blank; report any but a comma."""
    header = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    other = next((c for c in ";\t|" if "," not in header and c in header), None)
    if other:
        message = f"columns are separated by {other!r}, not by ','"
        problems.append(SubmissionProblem("delimiter", message))
    return other or ","


def _scan_rows(text: str, separator: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return row number and cell count of each row that is not blank, and the header's cells."""
    row_numbers: list[int] = []
    widths: list[int] = []
    header: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row_number, cells in enumerate(reader, 1):
            if len(cells) > 1 or (cells and cells[0].strip(" \t")):
                header = header or cells
                row_numbers.append(row_number)
                widths.append(len(cells))
    except csv.Error:
        # A cell beyond this reader's size limit. pandas has no limit and judges the file next.
        return np.empty(0, np.int64), np.empty(0, np.int64), header
    return np.array(row_numbers), np.array(widths), header
