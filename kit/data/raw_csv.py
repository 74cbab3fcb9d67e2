"""The competition's CSV files as columns of text: read by schema at C speed, refused with the row and id of a fault."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv

from kit.data import csv_errors, csv_source
from kit.errors import DataError
from kit.task import CLASSES, ID

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BLOCK = (
    1 << 20
)  # bytes: pyarrow's unit of work, which a record must fit in; small, so that what follows stays in cache
BLOCK_LIMIT = 2**31 - 1
FLAGS = (
    "0",
    "1",
    "0.0",
    "1.0",
    "False",
    "True",
)  # no and yes in turn, as pandas writes int, float and bool columns


@dataclass(frozen=True)
class RawBatch:
    """Some records of a CSV file, in its order: the columns asked for as text, unparsed.

    Attributes:
        start: the number of the first one in the file, from 0.
        cells: one string column per name asked for, N records.
    """

    path: Path
    start: int
    cells: pa.RecordBatch

    def fault(
        self, record: int, problem: str, hint: str = csv_errors.REMEDY, cut_short: bool = False
    ) -> DataError:
        """The error for the `record`-th of these records (from 0); see `fault`."""
        return row_error(
            self.path, self.start + record, self.cells[ID][record].as_py(), problem, hint, cut_short
        )


@dataclass(frozen=True)
class RawFile:
    """An opened CSV file.

    Attributes:
        batches: its records, to be read once; piece by piece they stay in the processor's cache, at half the time.
        ignored: the columns that the file has besides those asked for.
        repairs: what had to be repaired in the file's bytes: `nul_bytes` removed, `byte_order_mark` removed,
            `crlf_line_ends` read as line ends, each with its count.
    """

    batches: Iterator[RawBatch]
    ignored: tuple[str, ...]
    repairs: dict[str, int]


def row_error(
    path: Path,
    record: int,
    record_id: str,
    problem: str,
    hint: str = csv_errors.REMEDY,
    cut_short: bool = False,
) -> DataError:
    """The error for a file's `record`-th record (from 0), with its row and id; the file is read again to count rows.

    Args:
        cut_short: the problem may come from a file that ends in mid-row; said so if this is the last row.
    """
    data = csv_source.load_csv(path)
    row, last = csv_errors.find_row(data, record)
    where = csv_errors.describe_place(path, row, record_id)
    if cut_short and last and csv_errors.is_cut_off(data):
        return DataError(f"{where}: the file is cut off in this row: {problem}", csv_errors.CUT_OFF)
    return DataError(f"{where}: {problem}", hint)


def read_raw(
    path: str | Path, columns: Sequence[str] | Callable[[list[str]], Sequence[str]]
) -> RawFile:
    """Opens the named columns of a CSV file as text; column order and further columns are free.

    Args:
        columns: their names, or what chooses them from all the names in the header.
    Raises:
        DataError: the file cannot be used (here, or while its batches are read); names the file and, where there is
            one, the row and the id.
    """
    path = Path(path)
    repairs = csv_source.survey_csv(path)
    names = csv_errors.describe_header(csv_source.csv_head(path))
    columns = columns(names) if callable(columns) else columns
    _check_header(path, names, columns)
    batches = _batches(path, repairs["nul_bytes"] > 0, columns)
    return RawFile(batches, tuple(n for n in names if n not in columns), repairs)


def _check_header(path: Path, names: list[str], columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in names]
    if missing:
        joined = ",".join(names)
        other = next(
            (d for d in DELIMITERS if {c.strip('" ') for c in joined.split(d)} >= set(columns)),
            None,
        )
        if other:
            raise DataError(
                f"{path}: row 1: the columns are separated by {DELIMITERS[other]}, not commas",
                "Save the file with commas between the cells.",
            )
        shown = ", ".join(csv_errors.shorten(n, 30) for n in names[:12])
        raise DataError(
            f"{path}: row 1: no column {', '.join(missing)} (it has {shown})",
            f"The first row must name the columns {','.join(columns)}.",
        )
    repeated = [c for c in columns if names.count(c) > 1]
    if repeated:
        raise DataError(
            f"{path}: row 1: the column {repeated[0]} stands there twice", "Remove one of them."
        )


def _batches(path: Path, nul_bytes: bool, columns: Sequence[str]) -> Iterator[RawBatch]:
    if csv_source.quote_is_open_at_the_end(path) and (
        error := csv_errors.explain_structure(path, csv_source.load_csv(path))
    ):
        raise error  # pyarrow closes a quote that is open at the end of the file without a word
    done, reason = 0, None
    for block in (BLOCK, min(path.stat().st_size + 1, BLOCK_LIMIT)):
        try:
            first = 0
            file = pa.BufferReader(csv_source.load_csv(path)) if nul_bytes else pa.OSFile(str(path))
            for cells in _reader(file, columns, block):
                if first + len(cells) > done:
                    yield RawBatch(path, done, cells.slice(done - first))
                first += len(cells)
                done = max(done, first)
            reason = None
            break
        except pa.ArrowInvalid as invalid:
            reason = invalid
            if "straddl" not in str(
                invalid
            ):  # else a cell is larger than a block: go on with the file as one block
                break
    if reason is None and done:
        return
    if reason is None or "Empty CSV" in str(reason):
        raise DataError(
            f"{path}: row 1 is the header, and no row follows", "Fetch it again (`kit download`)."
        )
    error = csv_errors.explain_structure(path, csv_source.load_csv(path)) or DataError(
        f"{path}: not a CSV file that can be read: {csv_errors.shorten(str(reason))}",
        csv_errors.REMEDY,
    )
    raise error from reason


def _reader(file: pa.NativeFile, columns: Sequence[str], block: int) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        file,
        pacsv.ReadOptions(block_size=block, use_threads=False),
        pacsv.ParseOptions(newlines_in_values=True),
        pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)
        ),
    )


def parse_ids(batch: RawBatch) -> np.ndarray:
    """The ids (N,) as int64.

    Raises:
        DataError: an id is not a whole number of at most 18 digits.
    """
    column = batch.cells[ID]
    whole = pc.match_substring_regex(column, "^-?[0-9]{1,18}$").to_numpy(zero_copy_only=False)
    if not whole.all():
        raise batch.fault(int(whole.argmin()), "id is not a whole number of at most 18 digits")
    return column.cast(pa.int64()).to_numpy()


def check_unique_ids(path: Path, ids: np.ndarray) -> None:
    """Raises a DataError that names both rows if an id (N,) of the file stands there twice."""
    _, firsts = np.unique(ids, return_index=True)
    if len(firsts) < len(ids):
        record = int(np.delete(np.arange(len(ids)), firsts)[0])
        row, _ = csv_errors.find_row(csv_source.load_csv(path), int((ids == ids[record]).argmax()))
        problem = f"this id stands in row {row} already"
        raise row_error(
            path, record, str(ids[record]), problem, "Every row needs an id of its own."
        )


def parse_labels(batch: RawBatch, exempt: np.ndarray | None = None) -> np.ndarray:
    """The labels (N,) as int8, 0, 1 or 2: which of the three class columns is 1.

    Args:
        exempt: True for rows (N,) that need none; what stands for them means nothing.
    Raises:
        DataError: a row's class columns are not one 1 and two 0.
    """
    flags = [
        pc.fill_null(pc.index_in(batch.cells[c], pa.array(FLAGS)), -1).to_numpy() for c in CLASSES
    ]
    found = np.stack(flags, axis=1)  # (N, 3): -1 for anything else, odd for yes
    one_hot = found % 2
    bad = (found < 0).any(axis=1) | (one_hot.sum(axis=1) != 1)
    bad = bad if exempt is None else bad & ~exempt
    if bad.any():
        record = int(bad.argmax())
        cells = [batch.cells[c][record].as_py() for c in CLASSES]
        shown = ", ".join(
            f"{c} {csv_errors.shorten(cell, 12)}" for c, cell in zip(CLASSES, cells, strict=True)
        )
        remedy = "Exactly one of the three must be 1, the others 0. " + csv_errors.REMEDY
        raise batch.fault(record, f"not one-hot: {shown}", remedy, cut_short="" in cells)
    return one_hot.argmax(axis=1).astype(np.int8)
