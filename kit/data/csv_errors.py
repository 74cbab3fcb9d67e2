"""Explain what is wrong with a CSV file, with row and id. Use `row_error` and `diagnose_csv`.

pyarrow reads fast but does not say which row it stumbled over. These functions read the file a
second time, slowly and strictly, with Python's csv module. Rows are counted as a spreadsheet counts
them: the header is row 1, and a record may span several lines.
"""

import contextlib
import csv
import io
import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from kit.errors import DataError
from kit.task import ID

REPAIR_HINT = "Correct or remove that row, or fetch the file again (`kit download`)."
INCOMPLETE_HINT = "The file is incomplete: fetch it again (`kit download`), or remove its last row."
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Bytes that are enough for any header, or for the last line.
ENDS = 1 << 20


def read_csv_bytes(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes of a file, or all, without byte order mark and NUL bytes."""
    with path.open("rb") as file:
        return file.read(size).removeprefix(BYTE_ORDER_MARK).replace(b"\0", b"")


def read_header(path: Path) -> list[str]:
    """Return the cells of the first row."""
    return _first_row(read_csv_bytes(path, ENDS))


def check_header(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise a `DataError` unless each of the needed `columns` is once among the file's `names`."""
    missing = [column for column in columns if column not in names]
    if missing:
        joined = ",".join(names)
        for delimiter, delimiters in DELIMITERS.items():
            if {cell.strip('" ') for cell in joined.split(delimiter)} >= set(columns):
                raise DataError(
                    f"{path}: row 1: the columns are separated by {delimiters}, not commas",
                    "Save the file with commas between the cells.",
                )

        shown = ", ".join(shorten_cell(name, 30) for name in names[:12])
        raise DataError(
            f"{path}: row 1: no column {', '.join(missing)} (it has {shown})",
            f"Name the columns {','.join(columns)} in the first row.",
        )

    repeated = [column for column in columns if list(names).count(column) > 1]
    if repeated:
        raise DataError(f"{path}: row 1: duplicate column {repeated[0]}", "Remove one of them.")


def shorten_cell(value: str, limit: int = 60) -> str:
    """Return the first `limit` characters of a cell, quoted, control characters escaped."""
    return repr(value if len(value) <= limit else value[:limit] + "…")


def format_location(path: Path, row: int, record_id: str | None = None) -> str:
    """Return "train.csv: row 7, id 81", or without the id where it is not known."""
    if record_id is None:
        return f"{path}: row {row}"
    plain = record_id.isdecimal() and len(record_id) <= 20
    return f"{path}: row {row}, id {record_id if plain else shorten_cell(record_id, 20)}"


def row_error(
    path: Path,
    record: int,
    record_id: str,
    problem: str,
    hint: str = REPAIR_HINT,
    cut_short: bool = False,
) -> DataError:
    """Return the error for a file's `record`-th record, counted from 0, with its row and id.

    Args:
        cut_short: the problem may come from a file that ends in the middle of a row. The error says
            so if this is the last row and it lacks its line end.
    """
    data = read_csv_bytes(path)
    row, is_last = locate_record(data, record)

    location = format_location(path, row, record_id)
    if cut_short and is_last and _lacks_line_end(data):
        return DataError(f"{location}: the file is cut off in this row: {problem}", INCOMPLETE_HINT)
    return DataError(f"{location}: {problem}", hint)


def locate_record(data: bytes, record: int) -> tuple[int, bool]:
    """Return the spreadsheet row of a record, and whether it is the last.

    Args:
        record: counted from 0, without header and blank lines.
    """
    with _any_cell_size():
        rows = (row for row, cells in enumerate(csv.reader(_lines(data)), 1) if cells)

        # A record that is not there gets the row that it would have without blank lines.
        row = next(itertools.islice(rows, record + 1, None), record + 2)
        return row, next(rows, None) is None


def iterate_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of every row that is not blank, the header first, however odd.

    Bytes that are not UTF-8 become lone surrogates, and a file that is cut off ends in a short row.
    """
    with _any_cell_size():
        rows = csv.reader(_lines(read_csv_bytes(path)))
        yield from ((row, cells) for row, cells in enumerate(rows, 1) if cells)


def ends_in_open_quote(path: Path) -> bool:
    """Return whether the last line has an odd number of quotes.

    This is only a hint that a quote was never closed: a cell may contain line ends.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - ENDS))
        lines = file.read().rstrip(b"\0\r\n")

    return lines.count(b'"', lines.rfind(b"\n") + 1) % 2 == 1


def diagnose_csv(path: Path) -> DataError | None:
    """Return the error for the first record that is not well-formed CSV, or None if all are.

    Faults are an open quote, too few or too many cells, and text that is not UTF-8.
    """
    data = read_csv_bytes(path)
    names = _first_row(data)
    id_column = names.index(ID)

    # The lines of the current record: csv.Error does not give them.
    pending: list[str] = []

    def lines() -> Iterator[str]:
        for line in _lines(data):
            pending.append(line)
            yield line

    def location(row: int, cells: list[str]) -> str:
        return format_location(path, row, cells[id_column] if id_column < len(cells) else None)

    with _any_cell_size():
        reader = csv.reader(lines(), strict=True)
        row = 0
        try:
            for row, cells in enumerate(reader, 1):
                pending.clear()
                if cells and len(cells) != len(names):
                    cut_off = _lacks_line_end(data) and next(reader, None) is None
                    return _width_error(location(row, cells), cells, names, cut_off)

                for name, cell in zip(names, cells, strict=False):
                    if not _is_utf8(cell):
                        shown = name if name.isprintable() else shorten_cell(name, 30)
                        return DataError(
                            f"{location(row, cells)}: {shown} is not UTF-8 text",
                            "Save the file as UTF-8 and try again.",
                        )
        except csv.Error as error:
            cells = next(csv.reader(pending), [""])
            at_end = str(error) == "unexpected end of data"
            return _quote_error(
                location(row + 1, cells), cells, names, at_end, _lacks_line_end(data)
            )
    return None


def _width_error(location: str, cells: list[str], names: list[str], cut_off: bool) -> DataError:
    if cut_off and len(cells) < len(names):
        return DataError(
            f"{location}: the file is cut off in this row: {len(cells)} of {len(names)} cells",
            INCOMPLETE_HINT,
        )

    return DataError(
        f"{location}: {len(cells)} cells where the header has {len(names)}",
        "Put cells with commas, quotes or line ends in double quotes, and double the quotes in "
        f"them. {REPAIR_HINT}",
    )


def _quote_error(
    location: str, cells: list[str], names: list[str], at_end: bool, cut_off: bool
) -> DataError:
    if not at_end:
        return DataError(
            f"{location}: a quote inside a cell is not doubled, or a closing quote is missing",
            REPAIR_HINT,
        )

    column = names[min(len(cells), len(names)) - 1]
    if cut_off:
        return DataError(f"{location}: the file is cut off inside {column}", INCOMPLETE_HINT)
    return DataError(f"{location}: the quote that opens {column} is never closed", REPAIR_HINT)


def _first_row(data: bytes) -> list[str]:
    with _any_cell_size():
        return next(csv.reader(_lines(data)), [])


@contextlib.contextmanager
def _any_cell_size() -> Generator[None]:
    # The csv module's own limit, 128 KiB, is less than one long answer.
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _lines(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape", newline="")


def _lacks_line_end(data: bytes) -> bool:
    """Return whether the last row has no line end, as after an interrupted download."""
    return not data.endswith((b"\n", b"\r"))


def _is_utf8(cell: str) -> bool:
    """Return whether a cell came from valid UTF-8; other bytes were read as lone surrogates."""
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
