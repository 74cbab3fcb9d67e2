"""The prediction frame: a table of `id` and the three class columns, in Kaggle's own CSV form.

Out-of-fold, test, calibrated, blended and submitted predictions are all this; so a prediction *is* a submission.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from packaging.version import Version

from kit.errors import DataError
from kit.storage.atomic import atomic_file
from kit.task import CLASSES, ID, PREDICTION_COLUMNS

DIGITS = 300  # the largest float has 309
BEFORE_EXACT = Version(pd.__version__) < Version(
    "3.1"
)  # whose quick parser of numbers is off by a bit


def make_predictions(ids: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """A frame from ids (N,) and probabilities (N, 3); rows are normalised in float64.

    Float32 softmax rows sum to 1 only within 1e-7, and Kaggle's graders check the sum to 6 places.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not np.isfinite(probabilities).all():
        raise DataError(
            "a model gave probabilities that are not finite numbers",
            "Train it again with a lower rate.",
        )
    frame = pd.DataFrame(
        probabilities / probabilities.sum(axis=1, keepdims=True), columns=list(CLASSES)
    )
    frame.insert(0, ID, np.asarray(ids))
    return frame


def write_predictions(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes the CSV with full float precision (rounding to 6 places breaks row sums), whole or not at all.

    Raises:
        DataError: a probability is not a finite number.
    """
    if not np.isfinite(frame[list(CLASSES)].to_numpy(np.float64)).all():
        raise DataError(
            f"{path}: not written: its probabilities are not finite numbers", "Make them again."
        )
    with atomic_file(path) as temporary:
        frame.to_csv(temporary, columns=list(PREDICTION_COLUMNS), index=False, lineterminator="\n")


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Reads a prediction frame that other code will compute with: ids int64 and unique, classes float64 and finite.

    Column order and extra columns are free, as they are for Kaggle's graders. Use `evaluation.validate` to list
    every problem of a file instead of stopping at the first.

    Raises:
        DataError: the file is missing or is not a prediction frame.
    """
    frame = read_csv(path)
    missing = [c for c in PREDICTION_COLUMNS if c not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)} (it has {', '.join(repr(c[:60]) for c in frame.columns[:12])})",
            "A prediction file has the columns " + ", ".join(PREDICTION_COLUMNS) + ".",
        )
    if frame.empty:
        raise DataError(
            f"{path}: no rows", "Make it again; `kit validate` shows what a submission needs."
        )
    for column in PREDICTION_COLUMNS:
        numbers = to_numbers(frame[column])
        bad = ~np.isfinite(numbers.astype("float64").to_numpy())
        if column == ID:
            bad |= ~_whole(numbers)
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{path}: row {row + 2}: {column} is {str(frame[column].iloc[row])[:40]!r}, not "
                + ("a 64-bit whole number" if column == ID else "a finite number"),
                f"Run `kit validate {path}` for every problem at once.",
            )
        frame[column] = numbers.astype("int64" if column == ID else "float64")
    repeated = frame[ID][frame[ID].duplicated()]
    if len(repeated):
        raise DataError(
            f"{path}: row {repeated.index[0] + 2}: id {repeated.iloc[0]} stands there a second time",
            f"Run `kit validate {path}` for every problem at once.",
        )
    return frame


def to_numbers(column: pd.Series) -> pd.Series:
    """Cells as numbers, NaN where they are none; a whole number of hundreds of digits is none either."""
    try:
        return pd.to_numeric(column, errors="coerce")
    except OverflowError:
        return pd.to_numeric(column.where(column.astype(str).str.len() < DIGITS), errors="coerce")


def _whole(numbers: pd.Series) -> np.ndarray:
    """Which numbers (N,) are whole and can be kept as int64 exactly; a float is only whole below 2^53."""
    if pd.api.types.is_integer_dtype(numbers):
        return (numbers <= np.iinfo(np.int64).max).to_numpy()
    values = numbers.to_numpy(np.float64)
    return (np.abs(values) < 2**53) & (values == np.floor(values))


def read_csv(path: str | Path) -> pd.DataFrame:
    """Any CSV of ours, with the errors of a missing, empty or unreadable file made plain."""
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file", "Check the path, or run the command that makes it."
        )
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a CSV file", "Name a file in it.")
    try:
        text = path.read_bytes().decode(
            "utf-8-sig"
        )  # where pandas reads the file, Ctrl-C becomes a fault of the file
        return pd.read_csv(
            io.StringIO(text), float_precision="round_trip" if BEFORE_EXACT else None
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty", "Make it again.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a CSV file: {error}", "Make it again, as UTF-8 with commas."
        ) from error
