"""Another model's predictions as soft labels: for distillation, of rows with labels; for pseudo-labels, of others.

Predictions of training rows should be out-of-fold: a model that has seen a row's label gives it away.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kit import frame
from kit.data import raw
from kit.data.rows import Rows
from kit.data.targets import TOLERANCE
from kit.errors import DataError
from kit.schema import CLASSES, ID, TRAIN_FILE


def join(train: Rows, extras: Sequence[Rows], paths: Sequence[Path], frames: Sequence[Path]) -> tuple[Rows, list[Rows]]:
    """The rows with the predictions in `frames` for soft labels, by id.

    They go to rows of train.csv, and to rows of extra files that have no label of their own, which all need one.

    Args:
        paths: where the `extras` are from.
        frames: prediction frames.
    Raises:
        DataError: a frame cannot be used; an id is in two of them, or in no row, or in rows of both kinds; a row
            without a label has no prediction.
    """
    predictions = pd.concat([_probabilities(path) for path in frames])
    repeated = predictions.index.duplicated()
    if repeated.any():
        raise _fault(predictions, int(repeated.argmax()), "this id has a prediction already", "Give each id one.")
    unlabelled = [rows for rows in extras if len(rows.labels) < len(rows.ids)]
    ids = np.concatenate([np.empty(0, np.int64), *(rows.ids for rows in unlabelled)])
    known = predictions.index.to_numpy()
    in_train, in_extra = np.isin(known, train.ids), np.isin(known, ids)
    if (in_train & in_extra).any():
        problem = f"this id is in {TRAIN_FILE} and in an extra file without labels"
        raise _fault(predictions, int((in_train & in_extra).argmax()), problem, "Give the extra rows ids of their own.")
    if not (in_train | in_extra).all():
        problem = f"this id is neither in {TRAIN_FILE} nor in an extra file without labels"
        raise _fault(predictions, int((in_train | in_extra).argmin()), problem, "Leave out what is not trained on.")
    train = _with(train, predictions, np.isin(train.ids, known))
    joined = []
    for rows, path in zip(extras, paths, strict=True):
        if len(rows.labels) < len(rows.ids):
            found = np.isin(rows.ids, known)
            if not found.all():
                record = int(found.argmin())
                hint = "Predict every row of the file (`kit predict RUN --input FILE`)."
                raise raw.fault(path, record, str(rows.ids[record]), "no label, and no prediction for this id", hint)
            rows = _with(rows, predictions, found)
        joined.append(rows)
    return train, joined


def _with(rows: Rows, predictions: pd.DataFrame, found: np.ndarray) -> Rows:
    taken = predictions.loc[rows.ids[found], list(CLASSES)].to_numpy()
    if not len(rows.labels):
        return replace(rows, labels=taken.argmax(1).astype(np.int8), soft=taken)
    soft = np.eye(len(CLASSES))[rows.labels] if rows.soft is None else rows.soft.copy()
    soft[found] = taken
    return replace(rows, soft=soft)


def _probabilities(path: Path) -> pd.DataFrame:
    """A prediction frame by id, each row divided by its sum, with the file and the row that each is from."""
    found = frame.read(path).set_index(ID)[list(CLASSES)]
    total = found.sum(axis=1).to_numpy()
    found = found.assign(file=str(path), row=np.arange(len(found)) + 2)
    bad = (found[list(CLASSES)] < 0).any(axis=1).to_numpy() | (np.abs(total - 1) > TOLERANCE)
    if bad.any():
        problem = "these are not probabilities: a number is negative, or their sum is not 1"
        raise _fault(found, int(bad.argmax()), problem, f"Run `kit validate {path}` for every problem at once.")
    found[list(CLASSES)] /= total[:, None]
    return found


def _fault(predictions: pd.DataFrame, place: int, problem: str, hint: str) -> DataError:
    one = predictions.iloc[place]
    return DataError(f"{one['file']}: row {one['row']}, id {predictions.index[place]}: {problem}", hint)
