"""Make, read and write prediction frames: tables of `id` and the three class probabilities.

Out-of-fold, test, calibrated, blended and submitted predictions all have this form, which is
Kaggle's own CSV form, so a prediction file *is* a submission. Use `make_predictions`,
`read_predictions` and `write_predictions`.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from packaging.version import Version

from kit.errors import DataError
from kit.storage.atomic import atomic_file
from kit.storage.contents import refuse_other_format
from kit.task import CLASSES, ID, PREDICTION_COLUMNS

# The largest float has 309 digits; whole numbers beyond it overflow in pandas.
MAX_DIGITS = 300

# What a cell that is a number looks like. pandas would also take TRUE for 1, and `str.strip` a
# no-break space for nothing.
_NUMBER = r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+|inf|infinity)(?:e[+-]?[0-9]+)?[ \t]*"

# Before pandas 3.1 the default parser may miss the nearest float by one bit.
FLOAT_PRECISION = "round_trip" if Version(pd.__version__) < Version("3.1") else None


def make_predictions(ids: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Return a prediction frame of ids (N,) and probabilities (N, 3), each row summing to 1.

    Rows are normalised in float64: float32 softmax rows sum to 1 only within 1e-7, and Kaggle's
    graders check the sum to 6 places.

    Raises:
        DataError: a probability is not a finite number.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not np.isfinite(probabilities).all():
        raise DataError(
            "the model's probabilities are not finite numbers",
            "Train it again with a lower learning rate.",
        )

    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    frame = pd.DataFrame(probabilities, columns=list(CLASSES))
    frame.insert(0, ID, np.asarray(ids))
    return frame


def write_predictions(frame: pd.DataFrame, path: str | Path) -> None:
    """Write the frame as CSV, atomically and with full float precision.

    Rounding to 6 places would break the row sums.

    Raises:
        DataError: a probability is not a finite number.
    """
    if not np.isfinite(frame[list(CLASSES)].to_numpy(np.float64)).all():
        raise DataError(
            f"{path} was not written: its probabilities are not finite numbers",
            "Make the predictions again.",
        )

    with atomic_file(path) as temporary:
        frame.to_csv(temporary, columns=list(PREDICTION_COLUMNS), index=False, lineterminator="\n")


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read a prediction frame: ids int64 and unique, probabilities float64 and finite.

    Column order and extra columns are free, as they are for Kaggle's graders. This stops at the
    first problem; `evaluation.validate` lists every problem of a file.

    Raises:
        DataError: the file is missing or is not a prediction frame.
    """
    frame = read_csv(path)

    missing = [column for column in PREDICTION_COLUMNS if column not in frame.columns]
    if missing:
        columns = ", ".join(repr(str(column)[:60]) for column in frame.columns[:12])
        raise DataError(
            f"{path}: no column {', '.join(missing)} (it has {columns})",
            "A prediction file has the columns " + ", ".join(PREDICTION_COLUMNS) + ".",
        )
    if frame.empty:
        raise DataError(
            f"{path}: no rows", "Make it again; `kit validate` shows what a submission needs."
        )

    for column in PREDICTION_COLUMNS:
        frame[column] = _parse_column(frame[column], path)

    duplicates = np.flatnonzero(frame[ID].duplicated())
    if len(duplicates):
        second = int(duplicates[0])
        number = frame[ID].iloc[second]
        first = int(np.flatnonzero(frame[ID] == number)[0])
        raise DataError(
            f"{path}: duplicate id {number} (rows {first + 2} and {second + 2})",
            f"Run `kit validate {path}` for every problem at once.",
        )
    return frame


def _parse_column(column: pd.Series, path: str | Path) -> pd.Series:
    """Return ids as int64 or probabilities as float64; raise DataError for the first bad cell."""
    if column.name == ID:
        values, whole = parse_whole_numbers(column)
        numbers = pd.Series(values, column.index)
        bad = ~whole
    else:
        numbers = to_numbers(column)
        bad = ~np.isfinite(numbers.astype("float64").to_numpy())

    if bad.any():
        row = int(bad.argmax())
        kind = "a 64-bit whole number" if column.name == ID else "a finite number"
        raise DataError(
            f"{path}: row {row + 2}: {column.name} is {str(column.iloc[row])[:40]!r}, not {kind}",
            f"Run `kit validate {path}` for every problem at once.",
        )
    return numbers if column.name == ID else numbers.astype("float64")


def parse_whole_numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return cells as int64 (N,), and which of them are whole numbers, bool (N,).

    Text is read exactly: pandas reads ids as floats where a cell of the column is empty, and a
    float has only 15 to 16 digits.
    """
    if pd.api.types.is_integer_dtype(column):
        whole = _fits_int64(column)
        return column.where(whole, 0).to_numpy(np.int64), whole

    values = np.zeros(len(column), np.int64)
    whole = np.zeros(len(column), bool)
    is_digits = column.astype(str).str.fullmatch(r"[ \t]*[+-]?[0-9]{1,19}[ \t]*", na=False)
    for place in np.flatnonzero(is_digits.to_numpy(bool)):
        number = int(column.iat[place])
        if -(2**63) <= number < 2**63:
            values[place] = number
            whole[place] = True

    # Other spellings, such as 1.0 and 1e3.
    places = np.flatnonzero(~whole)
    others = to_numbers(column.iloc[places])
    fits = np.isfinite(others.to_numpy(np.float64)) & _fits_int64(others)
    values[places[fits]] = others[fits].astype(np.int64)
    whole[places[fits]] = True
    return values, whole


def to_numbers(column: pd.Series) -> pd.Series:
    """Return cells as numbers, and NaN for what is no number or has hundreds of digits.

    A cell is judged alone: that a whole column is TRUE and FALSE makes no numbers of them.
    """
    if pd.api.types.is_bool_dtype(column):
        return pd.Series(np.nan, column.index)
    if not pd.api.types.is_numeric_dtype(column):
        is_number = column.astype(str).str.fullmatch(_NUMBER, case=False, na=False)
        column = column.where(is_number)
    try:
        return pd.to_numeric(column, errors="coerce")
    except OverflowError:
        short = column.astype(str).str.len() < MAX_DIGITS
        return pd.to_numeric(column.where(short), errors="coerce")


def _fits_int64(numbers: pd.Series) -> np.ndarray:
    """Return which numbers (N,) int64 holds exactly; floats are exact only below 2^53."""
    if pd.api.types.is_integer_dtype(numbers):
        return (numbers <= np.iinfo(np.int64).max).to_numpy(bool, na_value=False)

    values = numbers.to_numpy(np.float64)
    return (np.abs(values) < 2**53) & (values == np.floor(values))


def parse_csv(text: str, **options: Any) -> pd.DataFrame:
    """Return the table in a CSV file's text, with exact floats, and ids as text.

    Every command reads predictions by this, so that all judge a cell alike.

    Args:
        options: more of `pandas.read_csv`.

    Raises:
        ParserError, EmptyDataError: of pandas; it is no table.
    """
    return pd.read_csv(
        io.StringIO(text),
        dtype={ID: str},
        float_precision=FLOAT_PRECISION,
        # In parts, one column could have cells of several types.
        low_memory=False,
        **options,
    )


def read_csv(path: str | Path, remove_nul: bool = False) -> pd.DataFrame:
    """Read a CSV file by `parse_csv`.

    Args:
        remove_nul: remove NUL characters, as the readers of the competition's files do.

    Raises:
        DataError: it is missing, empty or unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file", "Check the path, or run the command that makes it."
        )
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a CSV file", "Name a file in it.")
    refuse_other_format(path)

    try:
        # pandas gets the text, not the file: Ctrl-C while it reads a file is reported as a
        # ParserError.
        text = path.read_bytes().decode("utf-8-sig")
        if remove_nul:
            text = text.replace("\0", "")
        return parse_csv(text)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty", "Make it again.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a CSV file: {error}", "Make it again, as UTF-8 with commas."
        ) from error
