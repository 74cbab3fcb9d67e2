"""One raw file as rows that can be computed with: ids, labels, and clean texts."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kit.data import clean, raw
from kit.schema import CLASSES, TEST_COLUMNS, TEXTS


@dataclass(frozen=True)
class Rows:
    """A file of N rows.

    Attributes:
        ids: (N,) int64.
        texts: the three texts in unicode form, list<string>.
        labels: (N,) int8, or (0,) of a file without labels.
        ignored: columns of the file that nobody reads.
        repairs: how often each of the documented repairs was made (`raw.RawFile`, `clean.REPAIRS`).
    """

    ids: np.ndarray
    texts: pa.Table
    labels: np.ndarray
    ignored: tuple[str, ...]
    repairs: Counter


def read_rows(path: str | Path, labelled: bool, unique_ids: bool = True) -> Rows:
    """Reads a file with the columns of train.csv (`labelled`; model names are not needed) or of test.csv.

    Raises:
        DataError: the file cannot be used; names the file, row and id.
    """
    path = Path(path)
    file = raw.read(path, (*TEST_COLUMNS, *CLASSES) if labelled else TEST_COLUMNS)
    repairs = Counter({**file.repairs, **dict.fromkeys(clean.REPAIRS, 0)})
    ids, labels, texts = [], [np.empty(0, np.int8)], []
    for batch in file.batches:
        ids.append(raw.ids(batch))
        if labelled:
            labels.append(raw.labels(batch))
        texts.append(pa.record_batch({column: clean.decode(batch, column, repairs) for column in TEXTS}))
    rows = Rows(np.concatenate(ids), pa.Table.from_batches(texts), np.concatenate(labels), file.ignored, repairs)
    if unique_ids:
        raw.check_unique(path, rows.ids)
    return rows
