"""Read the labels that predictions are scored against, and match predictions to them by id.

Use `read_truth` or `truth_from_frame`, and `align_to_truth`. Rows are matched by id, never by
position: a reordered file must not score like a random one.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from kit.errors import DataError
from kit.evaluation.validate import is_gradable
from kit.predictions import parse_whole_numbers
from kit.storage.atomic import read_text_file
from kit.storage.contents import refuse_other_format
from kit.task import CLASSES, EXTRA, FLAGS, GROUP, ID, LABEL, PREDICTION_COLUMNS

IDS_SHOWN = 5  # in one error message


def read_truth(path: str | Path) -> pd.DataFrame:
    """Read labels as a frame: id int64, label int8 (index into `CLASSES`), group int64 if known.

    A CSV needs the id and the three one-hot class columns, as Kaggle's train.csv has them; a
    processed `.parquet` needs id and label. Other columns are ignored. Rows from extra data files
    are left out, since they are trained on but never scored.

    Raises:
        DataError: missing file or columns, no rows, a row that is not one-hot, a duplicate or
            fractional id.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file",
            "Give a file with the labels: train.csv, or a processed parquet.",
        )
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a truth file", "Name a file in it.")

    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    return _check_rows(path, table)


def truth_from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return labels as `read_truth` does, of a DataFrame with the columns of one of its files.

    That is id and label (0 for A, 1 for B, 2 for a tie), or id and the three one-hot class columns.

    Raises:
        DataError: columns are missing, no rows, a row without a label, a duplicate id.
    """
    name = "the DataFrame of labels"
    table = frame.reset_index(drop=True)
    if {ID, LABEL} <= set(table.columns):
        return _check_rows(name, _parse_labels(name, table))
    if set(PREDICTION_COLUMNS) <= set(table.columns):
        return _check_rows(name, _parse_one_hot(name, table))
    present = ", ".join(repr(str(column)[:60]) for column in table.columns[:12])
    raise DataError(
        f"{name} has neither the columns {ID} and {LABEL} nor {', '.join(PREDICTION_COLUMNS)} "
        f"(it has {present})",
        "Pass the labels' file, such as data/processed/train.parquet, or these columns.",
    )


def _check_rows(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the labels with a new index; raise DataError for no rows or a duplicate id."""
    if table.empty:
        raise DataError(
            f"{path}: no rows to score", "Give a file with the labels of the predicted rows."
        )

    duplicates = table[ID].duplicated()
    if duplicates.any():
        second = int(duplicates.argmax())
        repeated_id = table[ID].iloc[second]
        first = int((table[ID] == repeated_id).argmax())
        rows = f"rows {table.index[first]} and {table.index[second]}"
        more = f"; duplicate rows in all: {duplicates.sum()}" if duplicates.sum() > 1 else ""
        raise DataError(
            f"{path}: duplicate id {repeated_id} ({rows}{more})", "Keep one row for each id."
        )
    return table.reset_index(drop=True)


def _read_csv(path: Path) -> pd.DataFrame:
    """Return id and label, indexed by the row number of a spreadsheet, which counts blank lines."""
    refuse_other_format(path)
    try:
        text = read_text_file(path, newline="").replace("\0", "")
        header = pd.read_csv(io.StringIO(text), nrows=0).columns
        missing = [column for column in PREDICTION_COLUMNS if column not in header]
        if missing:
            present = ", ".join(repr(column[:60]) for column in header[:12])
            raise DataError(
                f"{path}: no column {', '.join(missing)} (it has {present})",
                f"Truth has the columns {', '.join(PREDICTION_COLUMNS)}, "
                "each class 0 or 1, as in train.csv.",
            )
        table = pd.read_csv(
            io.StringIO(text), usecols=list(PREDICTION_COLUMNS), skip_blank_lines=False, dtype=str
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty", "Give a file with the labels.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a CSV file: {error}", "Save it again as UTF-8 with commas."
        ) from error

    # The header is row 1, so the first data row is row 2.
    table.index += 2
    return _parse_one_hot(path, table.dropna(how="all"))


def _parse_one_hot(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return id and label of a table with the three class columns, with its index."""
    ids, whole = parse_whole_numbers(table[ID])
    _refuse_rows(path, table, ~whole, [ID], "the id is not a whole number")

    words = [table[name].astype(str).str.strip(" \t").str.lower() for name in CLASSES]
    places = np.column_stack([pd.Index(FLAGS).get_indexer(cells) for cells in words])  # (N, 3)
    classes = places % 2
    one_hot = (places >= 0).all(axis=1) & (classes.sum(axis=1) == 1)
    problem = "exactly one class must be 1 and the others 0"
    _refuse_rows(path, table, ~one_hot, [ID, *CLASSES], problem)

    labels = classes.argmax(axis=1).astype(np.int8)
    return pd.DataFrame({ID: ids, LABEL: labels}, table.index)


def _read_parquet(path: Path) -> pd.DataFrame:
    """Return id, label and any group, indexed by row number from 1 (there is no header row)."""
    import pyarrow
    import pyarrow.parquet

    refuse_other_format(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [column for column in (ID, LABEL) if column not in names]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)} (it has {', '.join(names[:12])})",
                    "Give a processed file with labels, such as train.parquet.",
                )
            columns = [column for column in (ID, LABEL, GROUP, EXTRA) if column in names]
            table = file.read(columns).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a parquet file: {error}", "Run `kit preprocess` again."
        ) from error

    table.index = pd.RangeIndex(1, len(table) + 1)
    return _parse_labels(path, table)


def _parse_labels(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return id, label and any group of a table with these columns, without extra rows."""
    table = table[[column for column in (ID, LABEL, GROUP, EXTRA) if column in table]]
    if EXTRA in table:
        table = table[~table[EXTRA].astype(bool)].drop(columns=EXTRA)

    ids, whole = parse_whole_numbers(table[ID])
    _refuse_rows(path, table, ~whole, [ID, LABEL], "the id is not a whole number")
    known = table[LABEL].isin(range(len(CLASSES))).to_numpy()
    _refuse_rows(path, table, ~known, [ID, LABEL], "unknown label")
    return table.assign(**{ID: ids}).astype({LABEL: np.int8})


def _refuse_rows(
    path: str | Path, table: pd.DataFrame, bad: np.ndarray, columns: list[str], problem: str
) -> None:
    """Raise DataError for the first of the `bad` rows (N,), quoting its cells."""
    if not bad.any():
        return

    first = int(bad.argmax())
    cells = ", ".join(f"{column} {str(table[column].iloc[first])[:40]!r}" for column in columns)
    more = f" ({int(bad.sum()) - 1} more such rows)" if bad.sum() > 1 else ""
    raise DataError(
        f"{path}: row {table.index[first]}: {problem}: {cells}{more}",
        "Correct or remove these rows.",
    )


def row_positions(
    ids: np.ndarray, wanted: np.ndarray, name: str, wanted_name: str, suggest_subset: bool = False
) -> np.ndarray:
    """Return the position in `ids` (N,) of each of the `wanted` ids (N,).

    Args:
        ids, wanted: ids in any order.
        name, wanted_name: what they are called in errors.
        suggest_subset: let the error propose --subset where it would help.

    Raises:
        DataError: an id is duplicated, or only on one side; gives the number and the first ids.
    """
    index = pd.Index(ids)
    wanted_index = pd.Index(wanted)
    for checked, owner in ((index, name), (wanted_index, wanted_name)):
        if not checked.is_unique:
            duplicates = _list_ids(checked[checked.duplicated()], "duplicate id")
            raise DataError(f"{owner}: {duplicates}", "Keep one row for each id.")

    absent = wanted_index[~wanted_index.isin(index)]
    unknown = index[~index.isin(wanted_index)]
    problems = []
    if len(absent):
        problems.append(f"{name} lacks {_list_ids(absent)} of {wanted_name}")
    if len(unknown):
        problems.append(f"{name} has {_list_ids(unknown)} that {wanted_name} does not have")
    if problems:
        hint = "Both must hold exactly the same ids; the order is free."
        if suggest_subset and not len(unknown):
            hint += " To use only the rows that the file predicts, add --subset."
        raise DataError("; ".join(problems), hint)
    return index.get_indexer(wanted_index)


def _list_ids(ids: pd.Index, noun: str = "id") -> str:
    """Return such as "7 ids (first: 50, 51, 52, 53, 54)"."""
    plural = "s" if len(ids) != 1 else ""
    prefix = "first: " if len(ids) > IDS_SHOWN else ""
    return f"{len(ids)} {noun}{plural} ({prefix}{', '.join(map(str, ids[:IDS_SHOWN]))})"


def restrict_truth(truth: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the truth of only those rows that `frame` predicts, in the truth's order.

    For predictions of a part of a file, such as validation rows against train.csv. Only on request
    (--subset): a prediction that silently omits rows would look better than it is.
    """
    return truth[truth[ID].isin(frame[ID])].reset_index(drop=True)


def prompt_group_warnings(truth: pd.DataFrame, path: str | Path) -> list[str]:
    """Return a warning for fits to this truth if it does not say which rows share a prompt."""
    if GROUP in truth:
        return []
    return [
        f"{path} does not tell which rows share a prompt: rows are treated as independent, so a "
        "prompt may be split between folds and intervals may be too narrow. "
        "Use the processed train.parquet instead."
    ]


def _refuse_other_rows(ids: np.ndarray, truth: pd.DataFrame, name: str) -> None:
    """Raise DataError if the truth has none of the predicted rows: it is that of another file."""
    if not len(ids) or np.isin(ids, truth[ID].to_numpy()).any():
        return
    raise DataError(
        f"{name}: none of its ids, such as {ids[0]}, is in the truth",
        "Training rows, as in oof.csv and valid.csv, are scored with --truth "
        "data/processed/train.parquet; test rows with a file of their labels.",
    )


def align_to_truth(
    frame: pd.DataFrame, truth: pd.DataFrame, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Match predictions to the truth by id.

    The rows come in the truth's order, so `truth["group"]` belongs to them row by row, and two
    frames aligned to one truth can be compared in pairs.

    Args:
        frame: a prediction frame.
        truth: as `read_truth` returns it.
        name: the frame's file, for errors.

    Returns:
        Probabilities float64 (N, 3) and labels int64 (N,).

    Raises:
        DataError: ids on one side only, duplicate ids, or rows that a grader would reject.
    """
    ids = frame[ID].to_numpy()
    _refuse_other_rows(ids, truth, name)
    order = row_positions(ids, truth[ID].to_numpy(), name, "the truth", suggest_subset=True)
    probabilities = frame[list(CLASSES)].to_numpy(np.float64)[order]

    rejected = ~is_gradable(probabilities)
    if rejected.any():
        first_id = truth[ID].iloc[int(rejected.argmax())]
        more = f" ({int(rejected.sum()) - 1} more such rows)" if rejected.sum() > 1 else ""
        raise DataError(
            f"{name}: id {first_id}: not probabilities that sum to 1 to 6 places{more}",
            f"Run `kit validate {name}` for every problem at once.",
        )
    return probabilities, truth[LABEL].to_numpy(np.int64)
