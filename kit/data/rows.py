"""One raw file as rows that can be computed with: ids, labels, and clean texts."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kit.data import clean
from kit.data.labels import Targets, concatenate_targets, label_columns, read_targets
from kit.data.raw_csv import check_unique_ids, parse_ids, read_raw
from kit.task import TEST_COLUMNS, TEXTS


@dataclass(frozen=True)
class RawRows:
    """A file of N rows.

    Attributes:
        ids: (N,) int64.
        texts: the three texts in unicode form, list<string>.
        labels, soft, weights: what they teach (`targets.Targets`).
        ignored: columns of the file that nobody reads.
        repairs: how often each of the documented repairs was made (`raw.RawFile`, `clean.REPAIRS`).
    """

    ids: np.ndarray
    texts: pa.Table
    labels: np.ndarray
    ignored: tuple[str, ...]
    repairs: Counter
    soft: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def targets(self) -> Targets:
        """What they teach."""
        return Targets(self.labels, self.soft, self.weights)


def read_rows(
    path: str | Path,
    labelled: bool,
    unique_ids: bool = True,
    *,
    pseudo: bool = False,
    unlabelled: bool = False,
) -> RawRows:
    """Reads a file with the columns of train.csv (`labelled`; model names are not needed) or of test.csv.

    Args:
        pseudo: rows may have soft labels alone.
        unlabelled: the file may have neither labels nor soft ones.
    Raises:
        DataError: the file cannot be used; names the file, row and id.
    """
    path = Path(path)

    def columns(names: list[str]) -> tuple[str, ...]:
        taught = label_columns(path, names, not pseudo, unlabelled) if labelled else ()
        return (*TEST_COLUMNS, *taught)

    file = read_raw(path, columns)
    repairs = Counter({**file.repairs, **dict.fromkeys(clean.REPAIRS, 0)})
    ids, taught, texts = [], [], []
    for batch in file.batches:
        ids.append(parse_ids(batch))
        if labelled:
            taught.append(read_targets(batch, labelled=not pseudo))
        texts.append(
            pa.record_batch(
                {column: clean.decode_turns(batch, column, repairs) for column in TEXTS}
            )
        )
    all_ids, each = np.concatenate(ids), concatenate_targets(taught)
    rows = RawRows(
        all_ids,
        pa.Table.from_batches(texts),
        each.labels,
        file.ignored,
        repairs,
        each.soft,
        each.weights,
    )
    if unique_ids:
        check_unique_ids(path, rows.ids)
    return rows
