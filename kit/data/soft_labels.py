"""Use another model's predictions as soft labels. Use `join_soft_labels`.

Predictions of labelled rows serve distillation; those of unlabelled rows are pseudo-labels. The
model that made them is the teacher, the model that is trained on them the student.

An out-of-fold prediction does not reveal the label of its own row, but it depends on other labels.
The teacher of fold j learned from the labels of fold k, and the student of fold k is validated on
these. Pseudo-labels are the mean of all teachers, which together have seen every label. The
validation scores of a student are therefore too good: only rows that no teacher saw can judge it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kit.data.csv_errors import row_error
from kit.data.labels import (
    TOLERANCE,
    UNLABELLED,
    Targets,
    certain_labels,
    concatenate_targets,
)
from kit.data.raw_csv import NO_NUMBER
from kit.data.rows import RawRows
from kit.errors import DataError
from kit.predictions import read_predictions
from kit.task import CLASSES, ID, TRAIN_FILE


def join_soft_labels(
    train: RawRows,
    extras: Sequence[RawRows],
    paths: Sequence[Path],
    prediction_files: Sequence[Path],
) -> Targets:
    """Return the targets of all rows, train.csv first, with predictions as soft labels, by id.

    Predictions are for rows of train.csv, and for rows of extra files without labels, all of which
    need one.

    Args:
        paths: the files of `extras`.

    Raises:
        DataError: a prediction file cannot be used; an id is in two of them, or in no row, or in
            rows of both kinds, or in two rows without a label; a row without a label has no
            prediction.
    """
    unlabelled = [
        (rows, path)
        for rows, path in zip(extras, paths, strict=True)
        if UNLABELLED in rows.targets.labels
    ]
    unlabelled_ids = _collect_ids(unlabelled)

    predictions = pd.concat([_read_probabilities(path) for path in prediction_files])
    _check_ids(predictions, train.ids, unlabelled_ids)

    predicted = predictions.index.to_numpy()
    for rows, path in unlabelled:
        found = np.isin(rows.ids, predicted)
        if not found.all():
            record = int(found.argmin())
            raise row_error(
                path,
                record,
                str(rows.ids[record]),
                "no label, and no prediction for this id",
                "Predict every row of the file (`kit predict RUN --input FILE`).",
            )

    return concatenate_targets(
        [
            _replace_soft_labels(train, predictions),
            *(
                _replace_soft_labels(rows, predictions)
                if UNLABELLED in rows.targets.labels
                else rows.targets
                for rows in extras
            ),
        ]
    )


def _collect_ids(files: Sequence[tuple[RawRows, Path]]) -> np.ndarray:
    """Return the ids of all rows of files without labels, after checking that they are unique."""
    ids = np.empty(0, np.int64)
    for rows, path in files:
        no_number = rows.ids == NO_NUMBER
        if no_number.any():
            raise row_error(
                path,
                int(no_number.argmax()),
                "",
                "the id is not a whole number of at most 18 digits, by which its prediction would "
                "be found",
                "Give the extra rows without labels whole numbers as ids.",
            )
        repeated = np.isin(rows.ids, ids) | pd.Index(rows.ids).duplicated()
        if repeated.any():
            # A prediction for this id could be of either row.
            record = int(repeated.argmax())
            raise row_error(
                path,
                record,
                str(rows.ids[record]),
                "duplicate id in the extra rows without labels",
                "Give the extra rows their own ids.",
            )
        ids = np.append(ids, rows.ids)
    return ids


def _check_ids(
    predictions: pd.DataFrame, train_ids: np.ndarray, unlabelled_ids: np.ndarray
) -> None:
    ids = predictions.index.to_numpy()
    in_train = np.isin(ids, train_ids)
    in_extra = np.isin(ids, unlabelled_ids)

    checks = (
        (
            predictions.index.duplicated(),
            "there is an earlier prediction for this id",
            "Keep one prediction for each id.",
        ),
        (
            in_train & in_extra,
            f"this id is in {TRAIN_FILE} and in an extra file without labels",
            "Give the extra rows their own ids.",
        ),
        (
            ~(in_train | in_extra),
            f"this id is neither in {TRAIN_FILE} nor in an extra file without labels",
            "Remove the predictions of rows that are not trained on.",
        ),
    )

    for bad, problem, hint in checks:
        if bad.any():
            raise _prediction_error(predictions, int(bad.argmax()), problem, hint)


def _replace_soft_labels(rows: RawRows, predictions: pd.DataFrame) -> Targets:
    """Return the targets of a file's rows, with predictions in place of soft labels if found."""
    targets = rows.targets
    found = np.isin(rows.ids, predictions.index)
    probabilities = predictions.loc[rows.ids[found], list(CLASSES)].to_numpy()

    labels = targets.labels.copy()
    likeliest = probabilities.argmax(1)
    labels[found] = np.where(labels[found] == UNLABELLED, likeliest, labels[found])

    soft = certain_labels(labels) if targets.soft is None else targets.soft.copy()
    soft[found] = probabilities
    return Targets(labels, soft, targets.weights)


def _read_probabilities(path: Path) -> pd.DataFrame:
    """Return a prediction file by id, each row divided by its sum, with its file and row number."""
    frame = read_predictions(path).set_index(ID)[list(CLASSES)]
    total = frame.sum(axis=1).to_numpy()
    negative = (frame < 0).any(axis=1).to_numpy()
    frame = frame.assign(file=str(path), row=np.arange(len(frame)) + 2)

    bad = negative | (np.abs(total - 1) > TOLERANCE)
    if bad.any():
        raise _prediction_error(
            frame,
            int(bad.argmax()),
            "not probabilities: a number is negative, or their sum is not 1",
            f"Run `kit validate {path}` for every problem at once.",
        )

    frame[list(CLASSES)] /= total[:, None]
    return frame


def _prediction_error(predictions: pd.DataFrame, place: int, problem: str, hint: str) -> DataError:
    row = predictions.iloc[place]
    return DataError(
        f"{row['file']}: row {row['row']}, id {predictions.index[place]}: {problem}", hint
    )
