"""Read a raw file as ids, targets and clean texts. Use `read_rows`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kit.data.clean import REPAIRS, decode_turns
from kit.data.labels import Targets, concatenate_targets, read_targets, target_columns
from kit.data.raw_csv import check_unique_ids, open_raw_csv, parse_ids
from kit.task import TEST_COLUMNS, TEXTS


@dataclass(frozen=True)
class RawRows:
    """The N rows of a raw file.

    Attributes:
        ids: (N,) int64.
        texts: the three texts in unicode form, list<string>.
        targets: of the N rows, or of none where the file was read without labels.
        ignored: columns of the file that are not used.
        repairs: how often each repair was made (see `raw_csv.RawFile` and `clean.REPAIRS`).
    """

    ids: np.ndarray
    texts: pa.Table
    targets: Targets
    ignored: tuple[str, ...]
    repairs: Counter


def read_rows(
    path: str | Path,
    labelled: bool,
    unique_ids: bool = True,
    *,
    label_required: bool = True,
    unlabelled: bool = False,
) -> RawRows:
    """Read a file with the columns of train.csv (model names optional) or of test.csv.

    Args:
        labelled: the file has the columns of train.csv.
        unique_ids: refuse a file in which an id occurs twice or is no number (otherwise that is
            `raw_csv.NO_NUMBER`).
        label_required: every row needs a label; otherwise soft labels are enough.
        unlabelled: the file may have neither labels nor soft labels.

    Raises:
        DataError: the file cannot be used; names the file, row and id.
    """
    path = Path(path)

    def choose_columns(names: list[str]) -> tuple[str, ...]:
        columns = target_columns(path, names, label_required, unlabelled) if labelled else ()
        return (*TEST_COLUMNS, *columns)

    file = open_raw_csv(path, choose_columns)
    repairs = Counter({**file.repairs, **dict.fromkeys(REPAIRS, 0)})
    ids = []
    targets = []
    texts = []
    for batch in file.batches:
        ids.append(parse_ids(batch, required=unique_ids))
        if labelled:
            targets.append(read_targets(batch, label_required))
        texts.append(
            pa.record_batch({column: decode_turns(batch, column, repairs) for column in TEXTS})
        )

    all_ids = np.concatenate(ids)
    if unique_ids:
        check_unique_ids(path, all_ids)
    return RawRows(
        ids=all_ids,
        texts=pa.Table.from_batches(texts),
        targets=concatenate_targets(targets),
        ignored=file.ignored,
        repairs=repairs,
    )
