"""The truth a prediction is scored against, and the one place where the two are brought into the same order.

Rows are matched by id, never by position: a reordered file must not score like a random one.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from kit.errors import DataError
from kit.evaluation.validate import is_gradable
from kit.predictions import to_numbers
from kit.task import CLASSES, EXTRA, GROUP, ID, LABEL, PREDICTION_COLUMNS

FIRST = 5  # ids named in an error


def read_truth(path: str | Path) -> pd.DataFrame:
    """Reads truth as a frame of id int64, label int8 (the index into `CLASSES`) and, where known, group int64.

    A CSV has id and the three one-hot class columns among its columns (Kaggle's train.csv does); a processed
    `.parquet` has id and label. Only those columns are read. Rows from extra data files are left out: they are
    trained on, never scored.

    Raises:
        DataError: missing file or columns, no rows, a row that is not one-hot, an id repeated or not whole.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file",
            "Give a file with the labels: train.csv, or a processed parquet.",
        )
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a truth file", "Name a file in it.")
    table = _from_parquet(path) if path.suffix == ".parquet" else _from_csv(path)
    if table.empty:
        raise DataError(
            f"{path}: no rows to score", "Give a file with the labels of the predicted rows."
        )
    repeated = table[ID].duplicated()
    if repeated.any():
        again = int(repeated.argmax())
        one = table[ID].iloc[again]
        first = int((table[ID] == one).argmax())
        rows = f"rows {table.index[first]} and {table.index[again]}"
        more = f" ({int(repeated.sum()) - 1} more repeated)" if repeated.sum() > 1 else ""
        raise DataError(f"{path}: {rows}: both have id {one}{more}", "Keep one row for each id.")
    return table.reset_index(drop=True)


def _from_csv(path: Path) -> pd.DataFrame:
    """id and label, indexed by row number; blank lines count as rows, as they do in a spreadsheet."""
    try:
        header = pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns
        missing = [c for c in PREDICTION_COLUMNS if c not in header]
        if missing:
            raise DataError(
                f"{path}: no column {', '.join(missing)} (it has {', '.join(repr(c[:60]) for c in header[:12])})",
                "Truth has the columns "
                + ", ".join(PREDICTION_COLUMNS)
                + ", each class 0 or 1, as train.csv has.",
            )
        table = pd.read_csv(
            path, usecols=list(PREDICTION_COLUMNS), encoding="utf-8-sig", skip_blank_lines=False
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty", "Give a file with the labels.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a CSV file: {error}", "Make it again, as UTF-8 with commas."
        ) from error
    table.index += 2
    table = table.dropna(how="all")
    ids = to_numbers(table[ID]).to_numpy(np.float64)
    _first_bad(
        path,
        table,
        ~(np.abs(ids) < 2**63) | (ids != np.floor(ids)),
        [ID],
        "the id is not a whole number",
    )
    classes = np.column_stack([to_numbers(table[c]).to_numpy(np.float64) for c in CLASSES])
    one_hot = np.isin(classes, (0, 1)).all(axis=1) & (classes.sum(axis=1) == 1)
    _first_bad(
        path, table, ~one_hot, [ID, *CLASSES], "exactly one class must be 1 and the others 0"
    )
    return pd.DataFrame(
        {ID: table[ID].astype(np.int64), LABEL: classes.argmax(axis=1).astype(np.int8)}, table.index
    )


def _from_parquet(path: Path) -> pd.DataFrame:
    """id, label and the group if there is one, indexed by row number from 1 (there is no header line)."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [c for c in (ID, LABEL) if c not in names]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)} (it has {', '.join(names[:12])})",
                    "Give a processed file with labels, such as train.parquet.",
                )
            table = file.read([c for c in (ID, LABEL, GROUP, EXTRA) if c in names]).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a parquet file: {error}", "Run `kit preprocess` again."
        ) from error
    table.index = pd.RangeIndex(1, len(table) + 1)
    if EXTRA in table:
        table = table[~table[EXTRA].astype(bool)].drop(columns=EXTRA)
    _first_bad(
        path,
        table,
        ~table[LABEL].isin(range(len(CLASSES))).to_numpy(),
        [ID, LABEL],
        "no such label",
    )
    return table.astype({ID: np.int64, LABEL: np.int8})


def _first_bad(
    path: Path, table: pd.DataFrame, bad: np.ndarray, columns: list[str], what: str
) -> None:
    if bad.any():
        place = int(bad.argmax())
        cells = ", ".join(f"{c} {str(table[c].iloc[place])[:40]!r}" for c in columns)
        more = f" ({int(bad.sum()) - 1} more such rows)" if bad.sum() > 1 else ""
        raise DataError(
            f"{path}: row {table.index[place]}: {what}: {cells}{more}",
            "Correct or remove these rows.",
        )


def row_positions(
    ids: np.ndarray, wanted: np.ndarray, name: str, wanted_name: str, partial: bool = False
) -> np.ndarray:
    """Where each of the `wanted` ids (N,) stands in `ids` (N,), which must be the same ids in any order.

    With `partial`, what is wanted is a truth of which --subset takes a part: the error says so where that helps.

    Raises:
        DataError: an id is repeated, or stands on one side only; says how many, and the first of them.
    """
    ids, wanted = pd.Index(ids), pd.Index(wanted)
    for index, owner in ((ids, name), (wanted, wanted_name)):
        if not index.is_unique:
            raise DataError(
                f"{owner}: {_first(index[index.duplicated()])} repeated",
                "Keep one row for each id.",
            )
    absent, unknown = wanted[~wanted.isin(ids)], ids[~ids.isin(wanted)]
    if len(absent) or len(unknown):
        parts = [f"{name} lacks {_first(absent)} of {wanted_name}"] if len(absent) else []
        parts += (
            [f"{name} has {_first(unknown)} that {wanted_name} does not have"]
            if len(unknown)
            else []
        )
        hint = "Both must hold exactly the same ids; the order is free."
        if partial and not len(unknown):
            hint += " To use only the rows that the file predicts, add --subset."
        raise DataError("; ".join(parts), hint)
    return ids.get_indexer(wanted)


def _first(ids: pd.Index) -> str:
    listed = ", ".join(str(one) for one in ids[:FIRST])
    return f"{len(ids)} id{'s' * (len(ids) != 1)} ({'first: ' * (len(ids) > FIRST)}{listed})"


def restrict_truth(truth: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The truth of only those rows that `frame` predicts, in the truth's order.

    For a share of a file (validation rows against train.csv). Asked for, never assumed: a prediction that silently
    leaves rows out would look better than it is.
    """
    return truth[truth[ID].isin(frame[ID])].reset_index(drop=True)


def without_prompts(truth: pd.DataFrame, path: str | Path) -> list[str]:
    """What a fit to this truth should be read with, if the file does not tell which rows share a prompt."""
    if GROUP in truth:
        return []
    return [
        f"{path} does not tell which rows share a prompt: each counts as evidence of its own, folds may part a prompt, "
        "and intervals may be too narrow; the processed train.parquet tells"
    ]


def align_to_truth(
    frame: pd.DataFrame, truth: pd.DataFrame, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 (N, 3) and labels int64 (N,) of the same rows, matched by id, in the truth's order.

    So `truth["group"]` belongs to them row by row, and two frames aligned to one truth can be compared in pairs.

    Args:
        frame: a prediction frame.
        truth: what `read_truth` gives.
        name: the frame's file, for errors.

    Raises:
        DataError: ids that only one side has, ids repeated, or rows that no grader would take.
    """
    order = row_positions(
        frame[ID].to_numpy(), truth[ID].to_numpy(), name, "the truth", partial=True
    )
    probabilities = frame[list(CLASSES)].to_numpy(np.float64)[order]
    good = is_gradable(probabilities)
    if not good.all():
        first, more = truth[ID].iloc[int((~good).argmax())], int((~good).sum()) - 1
        raise DataError(
            f"{name}: id {first}: not probabilities that sum to 1 to 6 places"
            + f" ({more} more such rows)" * (more > 0),
            f"Run `kit validate {name}` for every problem at once.",
        )
    return probabilities, truth[LABEL].to_numpy(np.int64)
