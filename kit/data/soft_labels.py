"""Another model's predictions as soft labels: for distillation, of rows with labels; for pseudo-labels, of others.

Out of fold, a prediction does not give away its own row's label, but others'. The teacher of fold j learned from the
labels of fold k, by which the student of fold k is judged; the mean of all teachers, which makes pseudo-labels, from
every label. A student's validation figures are too good: only rows that no teacher saw can judge it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kit.data.labels import TOLERANCE, UNLABELLED, Targets, concatenate_targets
from kit.data.raw_csv import row_error
from kit.data.rows import RawRows
from kit.errors import DataError
from kit.predictions import read_predictions
from kit.task import CLASSES, ID, TRAIN_FILE


def join_soft_labels(
    train: RawRows, extras: Sequence[RawRows], paths: Sequence[Path], frames: Sequence[Path]
) -> Targets:
    """What rows teach, those of train.csv first, with the predictions in `frames` for soft labels, by id.

    They go to rows of train.csv, and to rows of extra files that have no label of their own, which all need one.

    Args:
        paths: where the `extras` are from.
        frames: prediction frames.
    Raises:
        DataError: a frame cannot be used; an id is in two of them, or in no row, or in rows of both kinds, or in two
            rows without a label; a row without a label has no prediction.
    """
    unlabelled = [
        (rows, path) for rows, path in zip(extras, paths, strict=True) if UNLABELLED in rows.labels
    ]
    ids = _unique_ids(unlabelled)
    predictions = pd.concat([_probabilities(path) for path in frames])
    repeated = predictions.index.duplicated()
    if repeated.any():
        raise _fault(
            predictions,
            int(repeated.argmax()),
            "this id has a prediction already",
            "Give each id one.",
        )
    known = predictions.index.to_numpy()
    in_train, in_extra = np.isin(known, train.ids), np.isin(known, ids)
    if (in_train & in_extra).any():
        problem = f"this id is in {TRAIN_FILE} and in an extra file without labels"
        raise _fault(
            predictions,
            int((in_train & in_extra).argmax()),
            problem,
            "Give the extra rows ids of their own.",
        )
    if not (in_train | in_extra).all():
        problem = f"this id is neither in {TRAIN_FILE} nor in an extra file without labels"
        raise _fault(
            predictions,
            int((in_train | in_extra).argmin()),
            problem,
            "Leave out what is not trained on.",
        )
    for rows, path in unlabelled:
        found = np.isin(rows.ids, known)
        if not found.all():
            record = int(found.argmin())
            hint = "Predict every row of the file (`kit predict RUN --input FILE`)."
            raise row_error(
                path, record, str(rows.ids[record]), "no label, and no prediction for this id", hint
            )
    taught = [
        _with(rows, predictions) if UNLABELLED in rows.labels else rows.targets for rows in extras
    ]
    return concatenate_targets([_with(train, predictions), *taught])


def _unique_ids(files: Sequence[tuple[RawRows, Path]]) -> np.ndarray:
    """The ids of all rows in `files`; a prediction could be of either row where two share one."""
    ids = np.empty(0, np.int64)
    for rows, path in files:
        again = np.isin(rows.ids, ids) | pd.Index(rows.ids).duplicated()
        if again.any():
            record, problem = int(again.argmax()), "this id stands in two unlabelled extra rows"
            raise row_error(
                path,
                record,
                str(rows.ids[record]),
                problem,
                "Give the extra rows ids of their own.",
            )
        ids = np.append(ids, rows.ids)
    return ids


def _with(rows: RawRows, predictions: pd.DataFrame) -> Targets:
    """What a file's rows teach, with the predictions of those that have some."""
    found = np.isin(rows.ids, predictions.index)
    taken = predictions.loc[rows.ids[found], list(CLASSES)].to_numpy()
    labels = rows.labels.copy()
    labels[found] = np.where(labels[found] == UNLABELLED, taken.argmax(1), labels[found])
    soft = np.eye(UNLABELLED + 1, len(CLASSES))[labels] if rows.soft is None else rows.soft.copy()
    soft[found] = taken
    return Targets(labels, soft, rows.weights)


def _probabilities(path: Path) -> pd.DataFrame:
    """A prediction frame by id, each row divided by its sum, with the file and the row that each is from."""
    found = read_predictions(path).set_index(ID)[list(CLASSES)]
    total = found.sum(axis=1).to_numpy()
    found = found.assign(file=str(path), row=np.arange(len(found)) + 2)
    bad = (found[list(CLASSES)] < 0).any(axis=1).to_numpy() | (np.abs(total - 1) > TOLERANCE)
    if bad.any():
        problem = "these are not probabilities: a number is negative, or their sum is not 1"
        raise _fault(
            found,
            int(bad.argmax()),
            problem,
            f"Run `kit validate {path}` for every problem at once.",
        )
    found[list(CLASSES)] /= total[:, None]
    return found


def _fault(predictions: pd.DataFrame, place: int, problem: str, hint: str) -> DataError:
    one = predictions.iloc[place]
    return DataError(
        f"{one['file']}: row {one['row']}, id {predictions.index[place]}: {problem}", hint
    )
