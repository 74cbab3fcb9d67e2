"""What a raw row teaches: its label, and where the file has them soft labels and a weight.

Soft labels are probabilities of the classes, as votes of several judges or another model give them. They are trained
on in the label's place; validation is always scored by the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.data import csv_errors
from kit.data.raw_csv import RawBatch, parse_labels
from kit.errors import DataError
from kit.task import CLASSES, SOFT_LABELS, WEIGHT

UNLABELLED = len(CLASSES)  # in a label's place, where a file says nothing of its rows
LIGHTEST, HEAVIEST = (
    1e-6,
    1e6,
)  # of weights above 0; float32, in which they are trained on, makes others 0 or infinite
TOLERANCE = 1e-3  # by which soft labels may miss the sum 1, as rounding makes them; they are divided by their sum


@dataclass(frozen=True)
class Targets:
    """What N rows teach.

    Attributes:
        labels: (N,) int8; where a row has soft labels alone, the likeliest class (of equal ones the first); without
            any, `UNLABELLED`.
        soft: probabilities (N, 3), or None where no row has soft labels; a row without them has its label for sure,
            or zeros if it is unlabelled.
        weights: (N,) of at least 0, or None where all are 1.
    """

    labels: np.ndarray
    soft: np.ndarray | None = None
    weights: np.ndarray | None = None


def label_columns(
    path: Path, names: Sequence[str], labelled: bool, unlabelled: bool = False
) -> tuple[str, ...]:
    """Which columns of a file to read for its targets.

    Args:
        names: the columns that the file has.
        labelled: every row must have a label; otherwise soft labels are enough.
        unlabelled: the file may have neither.
    Raises:
        DataError: some columns of the soft labels are there and some are not.
    """
    soft = [name for name in SOFT_LABELS if name in names]
    missing = [name for name in SOFT_LABELS if name not in names]
    if soft and missing:
        raise DataError(
            f"{path}: row 1: no column {', '.join(missing)} beside {soft[0]}",
            "Soft labels are all three.",
        )
    optional = (*soft, *(name for name in (WEIGHT,) if name in names))
    bare = not any(name in names for name in CLASSES)
    return optional if bare and not labelled and (soft or unlabelled) else (*CLASSES, *optional)


def read_targets(batch: RawBatch, labelled: bool) -> Targets:
    """The targets of some records. Soft labels and weights may be empty cells: then the label alone, and 1.

    Args:
        labelled: as for `columns`; else the cells of the classes may be empty in rows that have soft labels.
    Raises:
        DataError: labels are not one-hot; soft labels or a weight are not numbers from 0 on; soft labels do not add up
            to 1 (within 0.001; they are divided by their sum); a weight is neither 0 nor from 1e-6 to 1e6.
    """
    names = batch.cells.schema.names
    rows = len(batch.cells)
    soft, bare = _soft(batch) if SOFT_LABELS[0] in names else (None, np.ones(rows, bool))
    if CLASSES[0] in names:
        empty = np.all([_empty(batch, name) for name in CLASSES], axis=0)
        labels = parse_labels(batch, exempt=empty & ~bare & (not labelled))
    elif soft is None:
        return Targets(np.full(rows, UNLABELLED, np.int8), None, _weights(batch))
    else:
        if bare.any():
            raise batch.fault(
                int(bare.argmax()), "no soft labels", "Without a label a row needs soft ones."
            )
        labels, empty = np.zeros(rows, np.int8), np.ones(rows, bool)
    if soft is not None:
        labels = np.where(empty, soft.argmax(1), labels).astype(np.int8)
        soft[bare] = np.eye(len(CLASSES))[labels[bare]]
    return Targets(labels, soft, _weights(batch))


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """The targets of all rows; soft labels and weights as soon as some part has them."""
    labels = np.concatenate([np.empty(0, np.int8), *(part.labels for part in parts)])
    soft = weights = None
    if any(part.soft is not None for part in parts):
        sure = np.eye(UNLABELLED + 1, len(CLASSES))
        soft = np.concatenate(
            [sure[part.labels] if part.soft is None else part.soft for part in parts]
        )
    if any(part.weights is not None for part in parts):
        weights = np.concatenate(
            [np.ones(len(p.labels)) if p.weights is None else p.weights for p in parts]
        )
    return Targets(labels, soft, weights)


def _soft(batch: RawBatch) -> tuple[np.ndarray, np.ndarray]:
    """The soft labels (N, 3), each row divided by its sum, and which rows (N,) have none."""
    bare = np.all([_empty(batch, name) for name in SOFT_LABELS], axis=0)
    soft = np.column_stack([_numbers(batch, name, ~bare) for name in SOFT_LABELS])
    total = soft.sum(1)
    off = ~bare & (np.abs(total - 1) > TOLERANCE)
    if off.any():
        record = int(off.argmax())
        raise batch.fault(record, f"the soft labels add up to {total[record]:.6g}, not 1")
    return soft / np.where(bare, 1, total)[:, None], bare


def _weights(batch: RawBatch) -> np.ndarray | None:
    if WEIGHT not in batch.cells.schema.names:
        return None
    given = ~_empty(batch, WEIGHT)
    weights = np.where(given, _numbers(batch, WEIGHT, given), 1.0)
    bad = (weights != 0) & ((weights < LIGHTEST) | (weights > HEAVIEST))
    if bad.any():
        record = int(bad.argmax())
        problem = (
            f"{WEIGHT} is {weights[record]:g}, neither 0 nor from {LIGHTEST:g} to {HEAVIEST:g}"
        )
        raise batch.fault(
            record, problem, "Only the ratios of weights count: scale them all, or give this row 0."
        )
    return weights


def _numbers(batch: RawBatch, name: str, needed: np.ndarray) -> np.ndarray:
    """A column as float64, 0 where it is not needed."""
    cells = batch.cells[name].to_pandas()
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    bad = needed & ~((numbers >= 0) & np.isfinite(numbers))
    if bad.any():
        record = int(bad.argmax())
        problem = f"{name} is {csv_errors.shorten(cells.iloc[record])}, not a number from 0 on"
        raise batch.fault(record, problem, cut_short=True)
    return np.where(needed, numbers, 0.0)


def _empty(batch: RawBatch, name: str) -> np.ndarray:
    return (batch.cells[name].to_pandas() == "").to_numpy()
