"""Where a CSV file is broken: a slow, strict second reading that finds row and id after the fast one has failed."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from kit.errors import DataError
from kit.task import ID

REMEDY = "Correct or remove that row, or fetch the file again (`kit download`)."
CUT_OFF = "The file is incomplete: fetch it again (`kit download`), or remove its last row."


def shorten(value: str, limit: int = 60) -> str:
    """The start of a cell, safe to print: control characters escaped, at most about `limit` characters."""
    return repr(value if len(value) <= limit else value[:limit] + "…")


def describe_place(path: Path, row: int, record_id: str | None = None) -> str:
    """ "train.csv: row 7, id 81"; row counts the header line as row 1, as a spreadsheet does."""
    if record_id is None:
        return f"{path}: row {row}"
    plain = record_id.isdecimal() and len(record_id) <= 20
    return f"{path}: row {row}, id {record_id if plain else shorten(record_id, 20)}"


@contextlib.contextmanager
def _any_cell_size() -> Iterator[None]:
    before = csv.field_size_limit(
        2**31 - 1
    )  # the module's own limit, 128 KiB, is less than one long answer
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _lines(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape", newline="")


def describe_header(data: bytes) -> list[str]:
    """The cells of the first row."""
    with _any_cell_size():
        return next(csv.reader(_lines(data)), [])


def find_row(data: bytes, record: int) -> tuple[int, bool]:
    """The spreadsheet row of the `record`-th record (from 0, header and blank lines apart), and if it is the last."""
    with _any_cell_size():
        rows = (row for row, cells in enumerate(csv.reader(_lines(data)), 1) if cells)
        row = next(itertools.islice(rows, record + 1, None), record + 2)
        return row, next(rows, None) is None


def is_cut_off(data: bytes) -> bool:
    """Whether the last row lacks its line end: what a download that stopped early leaves."""
    return not data.endswith((b"\n", b"\r"))


def explain_structure(path: Path, data: bytes) -> DataError | None:
    """The first record that is not well-formed CSV: an open quote, too few or too many cells, text that is not UTF-8.

    Args:
        data: the file's bytes, as `source.load` gives them.
    Returns:
        The error to raise, or None when every record is well formed.
    """
    pending: list[
        str
    ] = []  # the lines of the record that is being read: csv.Error does not give them

    def lines() -> Iterator[str]:
        for line in _lines(data):
            pending.append(line)
            yield line

    with _any_cell_size():
        names = describe_header(data)
        at = names.index(ID)
        reader = csv.reader(lines(), strict=True)
        row = 0
        try:
            for row, cells in enumerate(reader, 1):
                pending.clear()
                where = describe_place(path, row, cells[at] if at < len(cells) else None)
                if cells and len(cells) != len(names):
                    return _wrong_width(
                        where, cells, names, is_cut_off(data) and next(reader, None) is None
                    )
                bad = next(
                    (name for name, cell in zip(names, cells, strict=False) if not _is_utf8(cell)),
                    None,
                )
                if bad is not None:
                    return DataError(
                        f"{where}: {bad if bad.isprintable() else shorten(bad, 30)} is not UTF-8 text",
                        "Save the file as UTF-8 and try again.",
                    )
        except csv.Error as error:
            cells = next(csv.reader(pending), [""])
            where = describe_place(path, row + 1, cells[at] if at < len(cells) else None)
            return _open_quote(where, cells, names, str(error), is_cut_off(data))
    return None


def _is_utf8(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _wrong_width(where: str, cells: list[str], names: list[str], last: bool) -> DataError:
    if last and len(cells) < len(names):
        return DataError(
            f"{where}: the file is cut off in this row: {len(cells)} of {len(names)} cells", CUT_OFF
        )
    return DataError(
        f"{where}: {len(cells)} cells where the header has {len(names)}",
        "A cell with commas, quotes or line ends stands in double quotes, the quotes in it doubled. "
        + REMEDY,
    )


def _open_quote(
    where: str, cells: list[str], names: list[str], reason: str, cut_off: bool
) -> DataError:
    if reason != "unexpected end of data":
        return DataError(
            f"{where}: a quote inside a cell is not doubled, or a cell's closing quote is missing",
            REMEDY,
        )
    column = names[min(len(cells), len(names)) - 1]
    if cut_off:
        return DataError(f"{where}: the file is cut off inside {column}", CUT_OFF)
    return DataError(f"{where}: the quote that opens {column} is never closed", REMEDY)
