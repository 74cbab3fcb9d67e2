"""What a processed folder promises, checked on the files as written; a promise that is broken is a bug in kit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from kit.data.processed import TEST_SCHEMA, TEST_TABLE, TRAIN_SCHEMA, TRAIN_TABLE
from kit.schema import CLASSES, ID, LABEL, PROMPT, TEXTS


def check(folder: Path, manifest: dict, train_ids: np.ndarray, test_ids: np.ndarray) -> None:
    """Checks the Parquet files in `folder` against the manifest to be written and the input's ids, in order.

    Raises:
        AssertionError: a promise is broken, which no input should be able to do.
    """
    train, test = pq.read_table(folder / TRAIN_TABLE), pq.read_table(folder / TEST_TABLE)
    promises = {
        "the columns are those of the schema": train.schema.equals(TRAIN_SCHEMA) and test.schema.equals(TEST_SCHEMA),
        "every text has a turn and no turn is null": _whole(train) and _whole(test),
        "test ids are the input's, in order": np.array_equal(test[ID].to_numpy(), test_ids),
        **_rows(train, manifest, train_ids),
        **_counts(train, test, manifest),
    }
    if manifest["options"]["split"] == "grouped":
        promises["no prompt group crosses a fold or the holdout"] = _together(train, manifest["options"]["text"])
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise AssertionError(f"this is a bug in kit, please report it: {folder} breaks: {'; '.join(broken)}")


def _whole(table: pa.Table) -> bool:
    full = all(column.null_count == 0 for column in table.columns)
    turns = (chunk for c in TEXTS for chunk in table[c].chunks)
    return full and all(t.flatten().null_count == 0 and pc.min(pc.list_value_length(t)).as_py() > 0 for t in turns)


def _rows(train: pa.Table, manifest: dict, train_ids: np.ndarray) -> dict[str, bool]:
    ids, labels, fold, extra = (train[c].to_numpy() for c in (ID, LABEL, "fold", "extra"))
    own = ids[~extra]
    return {
        "labels are 0, 1 or 2": bool(np.isin(labels, range(len(CLASSES))).all()),
        "training ids are unique": len(np.unique(ids)) == len(ids),
        "competition rows are the input's, in order": np.array_equal(own, train_ids[np.isin(train_ids, own)]),
        "every competition row has a fold": set(np.unique(fold[~extra])) == set(range(manifest["options"]["folds"])),
        "every fold is a fold": bool((fold >= -1).all() and (fold < manifest["options"]["folds"]).all()),
    }


def _counts(train: pa.Table, test: pa.Table, manifest: dict) -> dict[str, bool]:
    counts, extra = manifest["counts"], train["extra"].to_numpy()
    own = np.bincount(train[LABEL].to_numpy()[~extra], minlength=len(CLASSES)).tolist()
    dropped = counts["extra_test_prompts_dropped"] + counts["extra_duplicates_dropped"]
    return {
        "competition rows add up": counts["train_rows_read"] - counts["duplicates_dropped"] == int((~extra).sum()),
        "extra rows add up": counts["extra_rows_read"] - dropped == int(extra.sum()),
        "written rows are counted": counts["train_rows"] == train.num_rows and counts["test_rows"] == test.num_rows,
        "classes are counted": list(manifest["classes"].values()) == own,
        "folds are counted": sum(fold["rows"] for fold in manifest["folds"]) == sum(own),
    }


def _together(train: pa.Table, text: str) -> bool:
    frame = pd.DataFrame({c: train[c].to_numpy() for c in ("group", "fold", "valid")})
    if text == "unicode":  # in the ascii form different prompts can look alike
        joined = pc.binary_join(train[PROMPT], "\0").cast(pa.large_string()).dictionary_encode()
        frame["prompt"] = np.concatenate([chunk.indices.to_numpy() for chunk in joined.chunks])
    rows = frame.drop_duplicates()
    by_prompt = "prompt" not in frame or not rows.duplicated("prompt").any()
    return by_prompt and not rows[["group", "fold", "valid"]].drop_duplicates().duplicated("group").any()
