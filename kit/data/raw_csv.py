# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Read the named columns of a CSV file as text, at pyarrow's speed. Use `open_raw_csv`.

What is harmless is repaired and counted (NUL bytes, a byte order mark, CRLF). Everything else is
refused with the row and the id of the fault (`kit.data.csv_errors`).
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv

from kit.data.csv_errors import (
    BYTE_ORDER_MARK,
    REPAIR_HINT,
    check_header,
    diagnose_csv,
    ends_in_open_quote,
    locate_record,
    read_csv_bytes,
    read_header,
    row_error,
    shorten_cell,
)
from kit.errors import DataError
from kit.storage.contents import refuse_other_format
from kit.task import ID

# In place of an id that is no number, for rows whose ids are made anew.
NO_NUMBER = -(2**63)

ID_PATTERN = re.compile("-?[0-9]{1,18}")

# Bytes read at a time to survey a file.
PIECE = 1 << 20

# pyarrow's unit of work in bytes. A record must fit in one block. Small blocks stay in the
# processor's cache until the next steps have used them, which halves the time.
BLOCK = 1 << 20
MAX_BLOCK = 2**31 - 1


@dataclass(frozen=True)
class RawBatch:
    """N consecutive records of a CSV file, as unparsed text.

    Attributes:
        start: the number of the first record in the file, from 0.
        cells: one string column for each column asked for.
    """

    path: Path
    start: int
    cells: pa.RecordBatch

    def error(
        self, record: int, problem: str, hint: str = REPAIR_HINT, cut_short: bool = False
    ) -> DataError:
        """Return the error for the `record`-th of these records (see `csv_errors.row_error`)."""
        record_id = self.cells[ID][record].as_py()
        return row_error(self.path, self.start + record, record_id, problem, hint, cut_short)


@dataclass(frozen=True)
class RawFile:
    """An opened CSV file.

    Attributes:
        batches: the records; they can be read once.
        ignored: columns of the file that were not asked for.
        repairs: what was repaired in the file's bytes, with counts: `nul_bytes` removed,
            `byte_order_mark` removed, `crlf_line_ends` read as line ends.
    """

    batches: Iterator[RawBatch]
    ignored: tuple[str, ...]
    repairs: dict[str, int]


def require_file(path: str | Path) -> Path:
    """Return the path of an existing, readable file, or raise a `DataError`."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a CSV file", "Name the file in it.")

    if not path.exists():
        raise DataError(
            f"{path}: no such file",
            "Check the path, or fetch the competition's files with `kit download`, "
            "or write a sample of them with `kit sample`.",
        )

    # A pipe can be read only once: faults could not be located, nor the file hashed.
    if not path.is_file():
        raise DataError(f"{path} is not a regular file", "Save it to a file first.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: permission denied", "Allow reading the file.")
    return path


def count_byte_repairs(path: str | Path) -> dict[str, int]:
    """Return how often each repair of the file's bytes is needed (see `RawFile`).

    Raises:
        DataError: the file is missing, empty, or of another format.
    """
    path = require_file(path)
    refuse_other_format(path)
    repairs = {"nul_bytes": 0, "byte_order_mark": 0, "crlf_line_ends": 0}
    empty = True
    before = b""

    with path.open("rb") as file:
        while piece := file.read(PIECE):
            if not before:
                repairs["byte_order_mark"] = int(piece.startswith(BYTE_ORDER_MARK))

            repairs["nul_bytes"] += piece.count(b"\0")
            # The search for a single byte is much faster than that for two, and CR is rare.
            if b"\r" in piece or before.endswith(b"\r"):
                repairs["crlf_line_ends"] += (before[-1:] + piece).count(b"\r\n")
            empty = empty and not piece.removeprefix(BYTE_ORDER_MARK).strip(b"\0 \t\r\n")
            before = piece

    if empty:
        raise DataError(
            f"{path}: the file is empty", "Fetch it again (`kit download`), or remove it."
        )
    return repairs


def open_raw_csv(
    path: str | Path,
    columns: tuple[str, ...] | Callable[[list[str]], tuple[str, ...]],
) -> RawFile:
    """Open the named columns of a CSV file as text; their order and further columns do not matter.

    Args:
        columns: their names, or a function that chooses them from the names in the header.

    Raises:
        DataError: the file cannot be used; raised here or while the batches are read. Names the
            file and, where there is one, the row and the id.
    """
    path = Path(path)
    repairs = count_byte_repairs(path)
    names = read_header(path)
    chosen = columns if isinstance(columns, tuple) else columns(names)
    check_header(path, names, chosen)

    batches = _read_batches(path, repairs["nul_bytes"] > 0, chosen)
    return RawFile(batches, tuple(name for name in names if name not in chosen), repairs)


def _read_batches(path: Path, nul_bytes: bool, columns: tuple[str, ...]) -> Iterator[RawBatch]:
    # pyarrow silently closes a quote that is open at the end of the file.
    if ends_in_open_quote(path) and (error := diagnose_csv(path)):
        raise error

    # Where a record is larger than a block, go on with the whole file as one block.
    done = 0
    reason: pa.ArrowInvalid | None = None
    for block in (BLOCK, min(path.stat().st_size + 1, MAX_BLOCK)):
        try:
            first = 0
            for cells in _open_reader(path, nul_bytes, columns, block):
                if first + len(cells) > done:
                    yield RawBatch(path, done, cells.slice(done - first))
                # A second reading starts again, and skips what the first has yielded.
                first += len(cells)
                done = max(done, first)
            reason = None
            break
        except pa.ArrowInvalid as invalid:
            reason = invalid
            if "straddl" not in str(invalid):
                break

    if reason is None and done:
        return

    if reason is None or "Empty CSV" in str(reason):
        raise DataError(f"{path}: no rows below the header", "Fetch it again (`kit download`).")
    raise diagnose_csv(path) or DataError(
        f"{path}: not a readable CSV file: {shorten_cell(str(reason))}", REPAIR_HINT
    ) from reason


def _open_reader(
    path: Path, nul_bytes: bool, columns: tuple[str, ...], block: int
) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        pa.BufferReader(read_csv_bytes(path)) if nul_bytes else pa.OSFile(str(path)),
        pacsv.ReadOptions(block_size=block, use_threads=False),
        pacsv.ParseOptions(newlines_in_values=True),
        pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)
        ),
    )


def parse_ids(batch: RawBatch, required: bool = True) -> np.ndarray:
    """Return the ids (N,) as int64.

    Args:
        required: refuse an id that is not a whole number of at most 18 digits. Otherwise it is
            `NO_NUMBER`.

    Raises:
        DataError: an id is not such a number.
    """
    column = batch.cells[ID]
    whole = pc.match_substring_regex(column, f"^{ID_PATTERN.pattern}$").to_numpy(
        zero_copy_only=False
    )
    if not whole.all():
        if required:
            raise batch.error(int(whole.argmin()), "id is not a whole number of at most 18 digits")
        column = pc.if_else(pa.array(whole), column, str(NO_NUMBER))
    return column.cast(pa.int64()).to_numpy()


def check_unique_ids(path: Path, ids: np.ndarray) -> None:
    """Raise a `DataError` that names both rows if an id (N,) of the file occurs twice."""
    _, firsts = np.unique(ids, return_index=True)
    if len(firsts) == len(ids):
        return

    second = int(np.delete(np.arange(len(ids)), firsts)[0])
    first = int((ids == ids[second]).argmax())

    data = read_csv_bytes(path)
    rows = " and ".join(str(locate_record(data, record)[0]) for record in (first, second))
    raise DataError(
        f"{path}: duplicate id {ids[second]} (rows {rows})", "Give every row its own id."
    )
