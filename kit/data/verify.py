"""What a processed folder promises, checked on the files as written; a promise that is broken is a bug in kit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from kit.data.dataset import TEST_SCHEMA, TEST_TABLE, TRAIN_SCHEMA, TRAIN_TABLE
from kit.data.deduplicate import numbers
from kit.task import CLASSES, EXTRA, GROUP, ID, LABEL, PROMPT, RESPONSES, SOFT_LABELS, TEXTS, WEIGHT


def verify_dataset(
    folder: Path,
    manifest: dict,
    train_ids: np.ndarray,
    test_ids: np.ndarray,
    schema: pa.Schema = TRAIN_SCHEMA,
) -> None:
    """Checks the Parquet files in `folder` against the manifest to be written and the input's ids, in order.

    Raises:
        AssertionError: a promise is broken, which no input should be able to do.
    """
    train, prompts, whole = _scan(folder / TRAIN_TABLE, schema)
    test, _, whole_test = _scan(folder / TEST_TABLE, TEST_SCHEMA)
    promises = {
        "columns are those of the schema, every text has a turn, and nothing is null": whole
        and whole_test,
        "test ids are the input's, in order": np.array_equal(test[ID], test_ids),
        **_rows(train, manifest, train_ids),
        **_counts(train, len(test[ID]), manifest),
    }
    if manifest["options"]["split"] == "grouped":
        promises["no prompt group crosses a fold or the holdout"] = _together(train, train[GROUP])
        if (
            manifest["options"]["text"] == "unicode"
        ):  # in the ascii form different prompts can look alike
            promises["no prompt crosses a fold or the holdout"] = _together(train, prompts)
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise AssertionError(
            f"this is a bug in kit, please report it: {folder} breaks: {'; '.join(broken)}"
        )


def _scan(path: Path, schema: pa.Schema) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
    """The columns that are not texts, a number for each prompt (N,), and whether the file is whole."""
    file = pq.ParquetFile(path, memory_map=True)
    meta = file.metadata
    leaves = [
        meta.row_group(i).column(j)
        for i in range(meta.num_row_groups)
        for j in range(meta.num_columns)
    ]
    full = all(
        leaf.statistics.null_count == 0 for leaf in leaves
    )  # a list that is null or empty counts as null too
    table = file.read([name for name in schema.names if name not in RESPONSES], use_threads=False)
    prompts = numbers(pc.binary_join(table[PROMPT], "\0").to_pylist())
    rest = {c: table[c].to_numpy() for c in schema.names if c not in TEXTS}
    return rest, prompts, full and file.schema_arrow.equals(schema)


def _rows(train: dict[str, np.ndarray], manifest: dict, train_ids: np.ndarray) -> dict[str, bool]:
    number, own = manifest["options"]["folds"], ~train[EXTRA]
    ids = train[ID][own]
    return {
        "labels are 0, 1 or 2": bool(np.isin(train[LABEL], range(len(CLASSES))).all()),
        "training ids are unique": len(np.unique(train[ID])) == len(train[ID]),
        "competition rows are the input's, in order": np.array_equal(
            ids, train_ids[np.isin(train_ids, ids)]
        ),
        "every competition row has a fold": set(np.unique(train["fold"][own]))
        == set(range(number)),
        "soft labels are probabilities and weights no less than 0": _taught(train),
        "an extra row has a fold or none": bool(np.isin(train["fold"], range(-1, number)).all()),
    }


def _taught(train: dict[str, np.ndarray]) -> bool:
    numbers = [train[name] for name in (*SOFT_LABELS, WEIGHT) if name in train]
    sound = all(np.isfinite(each).all() and (each >= 0).all() for each in numbers)
    return sound and (
        SOFT_LABELS[0] not in train or np.allclose(sum(numbers[:3]), 1, rtol=0, atol=1e-9)
    )


def _counts(train: dict[str, np.ndarray], test_rows: int, manifest: dict) -> dict[str, bool]:
    counts, extra = manifest["counts"], train[EXTRA]
    own = np.bincount(train[LABEL][~extra], minlength=len(CLASSES)).tolist()
    dropped = counts["extra_test_prompts_dropped"] + counts["extra_duplicates_dropped"]
    return {
        "competition rows add up": counts["train_rows_read"] - counts["duplicates_dropped"]
        == int((~extra).sum()),
        "extra rows add up": counts["extra_rows_read"] - dropped == int(extra.sum()),
        "written rows are counted": [counts["train_rows"], counts["test_rows"]]
        == [len(extra), test_rows],
        "classes are counted": list(manifest["classes"].values()) == own,
        "folds are counted": sum(fold["rows"] for fold in manifest["folds"]) == sum(own),
    }


def _together(train: dict[str, np.ndarray], key: np.ndarray) -> bool:
    side = 2 * (train["fold"].astype(np.int64) + 1) + train["valid"]
    return len(np.unique(key * (side.max() + 1) + side)) == len(np.unique(key))
