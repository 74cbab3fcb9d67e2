# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Read the training targets of raw rows: labels, soft labels and weights. Use `read_targets`.

Soft labels are probabilities of the classes, such as the votes of several judges or the predictions
of another model. They replace the label in training; validation always uses the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.csv_errors import REPAIR_HINT, shorten_cell
from kit.data.raw_csv import RawBatch
from kit.errors import DataError
from kit.task import CLASSES, FLAGS, SOFT_LABELS, WEIGHT

# The number in place of a label for rows of files without labels.
UNLABELLED = len(CLASSES)

# Models train in float32, where weights far outside this range would become 0 or infinite.
MIN_WEIGHT = 1e-6
MAX_WEIGHT = 1e6

# Rounded soft labels may miss the sum 1 by this much; they are divided by their sum.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Targets:
    """The training targets of N rows.

    Attributes:
        labels: (N,) int8. A row that has only soft labels gets its most probable class (the first
            of equal ones). A row with neither gets `UNLABELLED`.
        soft: probabilities (N, 3), or None if no row has soft labels. A row without soft labels has
            its label with probability 1, or zeros if it is unlabelled.
        weights: (N,), at least 0, or None if all are 1.
    """

    labels: np.ndarray
    soft: np.ndarray | None = None
    weights: np.ndarray | None = None


def target_columns(
    path: Path, names: Sequence[str], label_required: bool, unlabelled: bool = False
) -> tuple[str, ...]:
    """Return the columns of a file to read for its targets.

    Args:
        names: the columns of the file.
        label_required: every row needs a label; otherwise soft labels are enough.
        unlabelled: the file may have neither labels nor soft labels.

    Raises:
        DataError: some of the columns of the soft labels are missing.
    """
    soft = [name for name in SOFT_LABELS if name in names]
    missing = [name for name in SOFT_LABELS if name not in names]
    if soft and missing:
        raise DataError(
            f"{path}: row 1: there is a column {soft[0]}, but no column {', '.join(missing)}",
            "Give all three columns of soft labels, or none.",
        )

    optional = (*soft, WEIGHT) if WEIGHT in names else tuple(soft)
    has_labels = any(name in names for name in CLASSES)
    if has_labels or label_required or not (soft or unlabelled):
        return (*CLASSES, *optional)
    return optional


def read_targets(batch: RawBatch, label_required: bool) -> Targets:
    """Return the targets of a batch. Empty cells mean no soft labels, and a weight of 1.

    Args:
        label_required: as for `target_columns`. Otherwise the cells of the classes may be empty in
            rows with soft labels.

    Raises:
        DataError: labels are not one-hot; soft labels or a weight are not numbers of at least 0;
            soft labels do not sum to 1 within `TOLERANCE`; a weight is neither 0 nor from
            `MIN_WEIGHT` to `MAX_WEIGHT`.
    """
    columns = batch.cells.schema.names
    rows = len(batch.cells)
    has_soft_labels = SOFT_LABELS[0] in columns
    soft, lacks_soft = _read_soft_labels(batch) if has_soft_labels else (None, np.ones(rows, bool))

    if CLASSES[0] in columns:
        lacks_label = np.all([_is_empty(batch, name) for name in CLASSES], axis=0)
        exempt = lacks_label & ~lacks_soft & (not label_required)
        labels = _read_labels(batch, exempt)
    elif soft is None:
        return Targets(np.full(rows, UNLABELLED, np.int8), None, _read_weights(batch))
    else:
        if lacks_soft.any():
            record = int(lacks_soft.argmax())
            hint = "Give each row without a label soft labels, or remove it."
            raise batch.error(record, "no soft labels", hint)
        labels = np.zeros(rows, np.int8)
        lacks_label = np.ones(rows, bool)

    if soft is not None:
        labels = np.where(lacks_label, soft.argmax(1), labels).astype(np.int8)
        soft[lacks_soft] = np.eye(len(CLASSES))[labels[lacks_soft]]
    return Targets(labels, soft, _read_weights(batch))


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """Return the targets of all rows, with soft labels and weights if any part has them."""
    labels = np.concatenate([np.empty(0, np.int8), *(part.labels for part in parts)])

    soft = None
    if any(part.soft is not None for part in parts):
        soft = np.concatenate(
            [certain_labels(part.labels) if part.soft is None else part.soft for part in parts]
        )

    weights = None
    if any(part.weights is not None for part in parts):
        weights = np.concatenate(
            [np.ones(len(part.labels)) if part.weights is None else part.weights for part in parts]
        )
    return Targets(labels, soft, weights)


def certain_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels (N,) as probabilities (N, 3): 1 for the label, zeros for `UNLABELLED`."""
    return np.eye(UNLABELLED + 1, len(CLASSES))[labels]


def _read_labels(batch: RawBatch, exempt: np.ndarray) -> np.ndarray:
    """Return the labels (N,) as int8.

    Args:
        exempt: mask (N,) of rows that are not checked; their labels have no meaning.
    """
    words = [pc.utf8_lower(pc.utf8_trim(batch.cells[name], " \t")) for name in CLASSES]
    flags = [pc.fill_null(pc.index_in(cells, pa.array(FLAGS)), -1).to_numpy() for cells in words]
    # Positions in FLAGS (N, 3), odd for yes; -1 for any other cell.
    positions = np.stack(flags, axis=1)
    one_hot = positions % 2

    bad = ((positions < 0).any(axis=1) | (one_hot.sum(axis=1) != 1)) & ~exempt
    if bad.any():
        record = int(bad.argmax())
        cells = [batch.cells[name][record].as_py() for name in CLASSES]
        shown = ", ".join(
            f"{name} {shorten_cell(cell, 12)}" for name, cell in zip(CLASSES, cells, strict=True)
        )
        hint = f"Exactly one of the three must be 1, the others 0. {REPAIR_HINT}"
        raise batch.error(record, f"not one-hot: {shown}", hint, cut_short="" in cells)
    return one_hot.argmax(axis=1).astype(np.int8)


def _read_soft_labels(batch: RawBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return the soft labels (N, 3), divided by their sums, and a mask (N,) of rows without any."""
    missing = np.all([_is_empty(batch, name) for name in SOFT_LABELS], axis=0)
    soft = np.column_stack([_read_numbers(batch, name, ~missing) for name in SOFT_LABELS])

    total = soft.sum(1)
    bad = ~missing & (np.abs(total - 1) > TOLERANCE)
    if bad.any():
        record = int(bad.argmax())
        raise batch.error(record, f"the soft labels add up to {total[record]:.6g}, not 1")
    return soft / np.where(missing, 1, total)[:, None], missing


def _read_weights(batch: RawBatch) -> np.ndarray | None:
    """Return the weights (N,), 1 for empty cells; None if the file has no such column."""
    if WEIGHT not in batch.cells.schema.names:
        return None
    given = ~_is_empty(batch, WEIGHT)
    weights = np.where(given, _read_numbers(batch, WEIGHT, given), 1.0)

    bad = (weights != 0) & ((weights < MIN_WEIGHT) | (weights > MAX_WEIGHT))
    if bad.any():
        record = int(bad.argmax())
        raise batch.error(
            record,
            f"{WEIGHT} is {weights[record]:g}, neither 0 nor from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}",
            "Scale all weights (only their ratios count), or give this row weight 0.",
        )
    return weights


def _read_numbers(batch: RawBatch, name: str, needed: np.ndarray) -> np.ndarray:
    """Return a column (N,) as float64, with 0 where it is not needed."""
    cells = batch.cells[name].to_pandas()
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    bad = needed & ~((numbers >= 0) & np.isfinite(numbers))
    if bad.any():
        record = int(bad.argmax())
        shown = shorten_cell(cells.iloc[record])
        raise batch.error(record, f"{name} is {shown}, not a number of at least 0", cut_short=True)
    return np.where(needed, numbers, 0.0)


def _is_empty(batch: RawBatch, name: str) -> np.ndarray:
    return (batch.cells[name].to_pandas() == "").to_numpy()
