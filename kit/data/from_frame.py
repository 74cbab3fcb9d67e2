"""Turn a DataFrame of prompts and answers into the table that a model predicts on.

Use `frame_to_table`.
"""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.clean import TURNS, repair_text, strip_turns_to_ascii
from kit.data.options import TEXT_FORMS, check_choice
from kit.errors import DataError
from kit.task import ID, TEXTS

Cell = str | list[str | None]


def frame_to_table(frame: pd.DataFrame, text: str = "unicode") -> pa.Table:
    """Return id and the three texts, cleaned as `kit preprocess` cleans them, in the frame's order.

    Args:
        frame: columns prompt, response_a, response_b. A cell is a text or a list of turns. Rows
            whose three cells are JSON lists of turns, as in Kaggle's files, are decoded; then all
            rows have to be. `id` is optional; without it rows are numbered from 0. Other columns
            are ignored.
        text: the form that the model was trained on, "unicode" or "ascii".

    Raises:
        DataError: a column is missing, ids are not unique whole numbers, a cell is not a text, or
            only some rows are JSON.
    """
    check_choice("text", text, TEXT_FORMS)
    _check_columns(frame)

    ids = _read_ids(frame)
    cells = {column: _read_cells(frame[column], column) for column in TEXTS}
    turns = _decode_rows(cells)

    table = pa.table({column: pa.array(turns[column], TURNS) for column in TEXTS})
    if text == "ascii":
        table = strip_turns_to_ascii(table)
    return table.add_column(0, ID, pa.array(ids, pa.int64()))


def _check_columns(frame: pd.DataFrame) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"a pandas DataFrame is needed, not {type(frame).__name__}",
            f"Pass pandas.DataFrame(…) with the columns {', '.join(TEXTS)}.",
        )

    names = list(frame.columns)
    missing = [column for column in TEXTS if column not in names]
    if missing:
        raise DataError(
            f"the DataFrame has no column {', '.join(missing)}",
            f"It needs {', '.join(TEXTS)}, and may have {ID}.",
        )
    repeated = [column for column in (ID, *TEXTS) if names.count(column) > 1]
    if repeated:
        raise DataError(
            f"the DataFrame has the column {repeated[0]} more than once", "Rename one of them."
        )
    if frame.empty:
        raise DataError("the DataFrame has no rows", "Pass at least one row.")


def _read_ids(frame: pd.DataFrame) -> np.ndarray:
    """Return the ids (N,) as int64."""
    if ID not in frame.columns:
        return np.arange(len(frame))

    ids = frame[ID]
    missing = ids.isna().to_numpy()
    if missing.any():
        raise DataError(f"row {int(missing.argmax())}: {ID} is empty", "Fill it, or drop the row.")
    # Unsigned ids beyond int64 would wrap round.
    if not pd.api.types.is_integer_dtype(ids) or (ids > np.iinfo(np.int64).max).any():
        raise DataError(
            f"the column {ID} holds {ids.dtype}, not 64-bit whole numbers",
            "Convert it with .astype('int64'), or drop it: rows are then numbered from 0.",
        )

    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        second = int(repeated.argmax())
        number = ids.iloc[second]
        first = int((ids == number).to_numpy().argmax())
        raise DataError(
            f"duplicate {ID} {number} (rows {first} and {second})",
            "Make ids unique, or drop the column.",
        )
    return ids.to_numpy(np.int64)


def _read_cells(column: pd.Series, name: str) -> list[Cell]:
    """Return the cells as texts and lists of turns."""
    cells = []
    for position, cell in enumerate(column.tolist()):
        # Parquet files give lists as arrays.
        if isinstance(cell, np.ndarray | tuple):
            cell = list(cell)
        if not isinstance(cell, str) and not _is_turns(cell):
            raise DataError(
                f"row {position}: {name} is {str(cell)[:60]!r}, not a text or a list of texts",
                "Fill or drop the row.",
            )
        cells.append(cell)
    return cells


def _decode_rows(cells: dict[str, list[Cell]]) -> dict[str, list[list[str]]]:
    """Return each cell as a list of repaired turns, decoding JSON where all rows are in it.

    Whether a row is JSON is decided by its three cells together, and agreed by all rows: an answer
    that happens to be a list in JSON is a text, and a damaged row of Kaggle's file is an error.
    """
    decoded = {column: [decode_json_turns(cell) for cell in cells[column]] for column in TEXTS}
    rows = range(len(cells[TEXTS[0]]))
    is_json = [all(decoded[column][row] is not None for column in TEXTS) for row in rows]

    if any(is_json) and not all(is_json):
        other = is_json.index(False)
        raise DataError(
            f"row {is_json.index(True)} is in JSON, as Kaggle's files are, but row {other} is not",
            f"Correct row {other}. If all cells are plain texts, pass lists of one text each.",
        )
    source = decoded if all(is_json) else cells
    return {column: [_clean_turns(cell) for cell in source[column]] for column in TEXTS}


def decode_json_turns(cell: Cell) -> list[str | None] | None:
    """Return the turns that a cell of Kaggle's files holds, None for anything else."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None

    # Some writers leave line ends in strings unescaped, which the files' reader accepts, too.
    try:
        turns = json.loads(cell, strict=False)
    except (ValueError, RecursionError):
        return None
    return turns if _is_turns(turns) else None


def _is_turns(cell: object) -> bool:
    return isinstance(cell, list) and all(turn is None or isinstance(turn, str) for turn in cell)


def _clean_turns(cell: Cell | None) -> list[str]:
    """Return repaired turns: an empty list is one empty turn and null is one, as in the files."""
    turns = [cell] if isinstance(cell, str) else cell
    return [repair_text(turn or "", Counter()) for turn in turns or [""]]
