# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Check the written files of a processed folder against its manifest. Use `verify_dataset`.

No input should be able to break these invariants: a broken one is a bug in kit.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from kit.data.dataset import TEST_SCHEMA, TEST_TABLE, TRAIN_SCHEMA, TRAIN_TABLE
from kit.data.deduplicate import number_texts
from kit.task import CLASSES, EXTRA, GROUP, ID, LABEL, PROMPT, RESPONSES, SOFT_LABELS, TEXTS, WEIGHT


def verify_dataset(
    folder: Path,
    manifest: dict,
    train_ids: np.ndarray,
    test_ids: np.ndarray,
    schema: pa.Schema = TRAIN_SCHEMA,
) -> None:
    """Check the Parquet files against the manifest to be written and the input's ids, in order.

    Raises:
        AssertionError: an invariant is broken.
    """
    train, prompts, train_complete = _scan_table(folder / TRAIN_TABLE, schema)
    test, _, test_complete = _scan_table(folder / TEST_TABLE, TEST_SCHEMA)
    options = manifest["options"]

    # What must hold, and whether it does.
    invariants = {
        "columns are those of the schema, every text has a turn, and nothing is null": (
            train_complete and test_complete
        ),
        "test ids are the input's, in order": np.array_equal(test[ID], test_ids),
        **_row_invariants(train, options["folds"], train_ids),
        **_count_invariants(train, len(test[ID]), manifest),
    }
    if options["split"] == "grouped":
        invariants["no prompt group crosses a fold or the holdout"] = _stays_together(
            train, train[GROUP]
        )
        # In the ascii form, different prompts can become equal.
        if options["text"] == "unicode":
            invariants["no prompt crosses a fold or the holdout"] = _stays_together(train, prompts)

    broken = [name for name, holds in invariants.items() if not holds]
    if broken:
        raise AssertionError(
            f"this is a bug in kit, please report it: {folder} breaks: {'; '.join(broken)}"
        )


def _scan_table(path: Path, schema: pa.Schema) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
    """Return the columns without texts, a number for each prompt (N,), and if the file is complete.

    A complete file has the columns of the schema and no nulls.
    """
    file = pq.ParquetFile(path, memory_map=True)
    metadata = file.metadata
    chunks = [
        metadata.row_group(i).column(j)
        for i in range(metadata.num_row_groups)
        for j in range(metadata.num_columns)
    ]
    # A list that is null or empty counts as a null too.
    no_nulls = all(chunk.statistics.null_count == 0 for chunk in chunks)

    table = file.read([name for name in schema.names if name not in RESPONSES], use_threads=False)
    prompts = number_texts(pc.binary_join(table[PROMPT], "\0").to_pylist())
    columns = {name: table[name].to_numpy() for name in schema.names if name not in TEXTS}

    return columns, prompts, no_nulls and file.schema_arrow.equals(schema)


def _row_invariants(
    train: dict[str, np.ndarray], folds: int, train_ids: np.ndarray
) -> dict[str, bool]:
    own = ~train[EXTRA]
    ids = train[ID][own]
    in_order = train_ids[np.isin(train_ids, ids)]

    return {
        "labels are 0, 1 or 2": bool(np.isin(train[LABEL], range(len(CLASSES))).all()),
        "training ids are unique": len(np.unique(train[ID])) == len(train[ID]),
        "competition rows are the input's, in order": np.array_equal(ids, in_order),
        "every competition row has a fold": set(np.unique(train["fold"][own])) == set(range(folds)),
        "soft labels are probabilities and weights at least 0": _has_valid_targets(train),
        "an extra row has a fold or none": bool(np.isin(train["fold"], range(-1, folds)).all()),
    }


def _has_valid_targets(train: dict[str, np.ndarray]) -> bool:
    columns = [train[name] for name in (*SOFT_LABELS, WEIGHT) if name in train]
    if not all(np.isfinite(column).all() and (column >= 0).all() for column in columns):
        return False

    return SOFT_LABELS[0] not in train or np.allclose(sum(columns[:3]), 1, rtol=0, atol=1e-9)


def _count_invariants(
    train: dict[str, np.ndarray], test_rows: int, manifest: dict
) -> dict[str, bool]:
    counts = manifest["counts"]
    extra = train[EXTRA]
    classes = np.bincount(train[LABEL][~extra], minlength=len(CLASSES)).tolist()
    own = counts["train_rows_read"] - counts["duplicates_dropped"]
    extra_dropped = counts["extra_test_prompts_dropped"] + counts["extra_duplicates_dropped"]
    written = [counts["train_rows"], counts["test_rows"]]

    return {
        "competition rows add up": own == int((~extra).sum()),
        "extra rows add up": counts["extra_rows_read"] - extra_dropped == int(extra.sum()),
        "written rows are counted": written == [len(extra), test_rows],
        "classes are counted": list(manifest["classes"].values()) == classes,
        "folds are counted": sum(fold["rows"] for fold in manifest["folds"]) == sum(classes),
    }


def _stays_together(train: dict[str, np.ndarray], key: np.ndarray) -> bool:
    """Return whether all rows with the same key (N,) are in the same fold and on the same side."""
    part = 2 * (train["fold"].astype(np.int64) + 1) + train["valid"]
    return len(np.unique(key * (part.max() + 1) + part)) == len(np.unique(key))
