"""Turn a pandas DataFrame of prompts and answers into the table that a model predicts on. Use `frame_to_table`."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.clean import REPAIRS, repair_text, strip_turns_to_ascii
from kit.data.options import TEXT_FORMS, check_choice
from kit.errors import DataError
from kit.task import ID, TEXTS


def frame_to_table(frame: pd.DataFrame, text: str = "unicode") -> pa.Table:
    """Return id and the three texts, cleaned as `kit preprocess` cleans them, in the frame's order.

    Args:
        frame: columns prompt, response_a, response_b. A cell is a text, a list of turns, or, where
            all cells of a column are, a list of turns in JSON as in Kaggle's files. `id` is
            optional; without it rows are numbered from 0. Other columns are ignored.
        text: the form that the model was trained on, "unicode" or "ascii".

    Raises:
        DataError: a column is missing, ids are not unique whole numbers, or a cell is not a text.
    """
    check_choice("text", text, TEXT_FORMS)
    missing = [column for column in TEXTS if column not in frame.columns]
    if missing:
        raise DataError(
            f"the DataFrame has no column {', '.join(missing)}",
            f"It needs {', '.join(TEXTS)}, and may have {ID}.",
        )
    if frame.empty:
        raise DataError("the DataFrame has no rows", "Pass at least one row.")

    columns = {ID: pa.array(_read_ids(frame), pa.int64())}
    for column in TEXTS:
        turns = _read_turns(frame[column], column)
        columns[column] = pa.array(turns, pa.list_(pa.string()))
    table = pa.table(columns)
    return strip_turns_to_ascii(table) if text == "ascii" else table


def _read_ids(frame: pd.DataFrame) -> np.ndarray:
    if ID not in frame.columns:
        return np.arange(len(frame))
    ids = frame[ID]
    if not pd.api.types.is_integer_dtype(ids):
        raise DataError(
            f"the column {ID} holds {ids.dtype}, not whole numbers", "Convert or drop it."
        )
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise DataError(f"duplicate id {repeated.iloc[0]}", "Make ids unique, or drop the column.")
    return ids.to_numpy(np.int64)


def _read_turns(cells: pd.Series, column: str) -> list[list[str]]:
    """Return each cell as a list of repaired turns."""
    values = cells.tolist()
    decoded = [_decode_json(value) for value in values]
    if all(turns is not None for turns in decoded):
        values = decoded

    rows = []
    for position, value in enumerate(values):
        turns = [value] if isinstance(value, str) else value
        if isinstance(turns, np.ndarray | tuple):
            turns = list(turns)
        if not isinstance(turns, list) or not all(
            turn is None or isinstance(turn, str) for turn in turns
        ):
            raise DataError(
                f"row {position}: {column} is {str(value)[:60]!r}, not a text or a list of texts",
                "Fill or drop the row.",
            )
        # An empty list is an empty answer, and null an empty turn, as in Kaggle's files.
        rows.append(
            [repair_text(turn or "", Counter(dict.fromkeys(REPAIRS, 0))) for turn in turns or [""]]
        )
    return rows


def _decode_json(cell: Any) -> list[Any] | None:
    """Return the list that a cell of Kaggle's files holds, None for anything else."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    is_turns = isinstance(turns, list) and all(t is None or isinstance(t, str) for t in turns)
    return turns if is_turns else None
