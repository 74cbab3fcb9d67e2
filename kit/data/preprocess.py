"""Clean, label, merge and split the rows of raw CSV files. Use `preprocess_files`.

The same inputs and options give the same bytes; a folder that has them already is left as it is.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from kit import __version__
from kit.data.clean import find_uneven_turns, strip_turns_to_ascii
from kit.data.csv_errors import row_error
from kit.data.dataset import (
    MANIFEST,
    SOFT_FIELDS,
    TEST_SCHEMA,
    TEST_TABLE,
    TRAIN_SCHEMA,
    TRAIN_TABLE,
    WEIGHT_FIELD,
    find_changed_file,
    manifest_digest,
    read_manifest,
)
from kit.data.deduplicate import MergedRows, inherit_split, merge_rows
from kit.data.options import TEXT_FORMS, PreprocessOptions, check_choice
from kit.data.raw_csv import check_unique_ids, open_raw_csv, parse_ids, require_file
from kit.data.rows import RawRows, read_rows
from kit.data.soft_labels import join_soft_labels
from kit.data.split import split_folds, split_holdout
from kit.data.verify import verify_dataset
from kit.errors import KitError
from kit.storage.atomic import atomic_file, file_sha256, write_json
from kit.storage.lock import hold_lock
from kit.task import BAYES_FILE, CLASSES, ID, PREDICTION_COLUMNS, SAMPLE_FILE, TEST_FILE, TRAIN_FILE

# The version of the processed folder. Raise it when the same inputs and options give other bytes.
FORMAT = 2

# Rows in a Parquet row group. It is fixed because it decides the bytes.
ROW_GROUP = 4096


def prepare_input(path: str | Path, text: str) -> pa.Table:
    """Return a CSV file with the columns of test.csv as the table that a model predicts on.

    The table has the id and the three texts, in the order of the file.

    Args:
        text: the form that the model was trained on, "unicode" or "ascii".

    Raises:
        DataError: the file cannot be used; names the row and the id.
    """
    check_choice("text", text, TEXT_FORMS)
    rows = read_rows(path, labelled=False)
    return _in_form(rows.texts, text).add_column(0, ID, pa.array(rows.ids))


def _in_form(texts: pa.Table, text: str) -> pa.Table:
    return strip_turns_to_ascii(texts) if text == "ascii" else texts


def preprocess_files(
    raw: str | Path,
    out: str | Path,
    *,
    extra: Sequence[str | Path] = (),
    soft_labels: Sequence[str | Path] = (),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> dict:
    """Read the raw folder and write `train.parquet`, `test.parquet` and, last, `manifest.json`.

    Files of an earlier run in `out` are replaced, unless their inputs and options were the same.

    Args:
        raw: the folder of train.csv and test.csv; sample_submission.csv is checked against test.csv
            if it is there.
        out: the processed folder.
        extra: further training files with the columns of train.csv (model names optional), which
            are trained on and never scored. Any training file may have soft labels and weights
            (`kit.data.labels`); extra rows with soft labels need no label.
        soft_labels: prediction files whose rows are used as soft labels, by id
            (`kit.data.soft_labels`).
        progress: called with what is done next, the steps done and all steps.
        **options: the fields of `PreprocessOptions`.

    Returns:
        The manifest, and under "reused" whether the folder was up to date.

    Raises:
        DataError: an input file cannot be used; names the file, row and id.
        KitError: an option is out of range, or `out` cannot be the processed folder.
        HeldError: another process is writing `out`.
    """
    checked = PreprocessOptions(**options)
    raw = Path(raw)
    out = Path(out)
    if out.exists() and (not out.is_dir() or out.resolve() == raw.resolve()):
        what = "the raw folder" if out.is_dir() else "a file"
        raise KitError(f"{out} is {what}", "Choose another folder with --out.")

    inputs = {"train": raw / TRAIN_FILE, "test": raw / TEST_FILE}
    optional = {"sample": raw / SAMPLE_FILE, "floor": raw / BAYES_FILE}
    inputs |= {role: path for role, path in optional.items() if path.exists()}
    extra_files = [Path(path) for path in extra]
    prediction_files = [Path(path) for path in soft_labels]

    with hold_lock(out):
        files = [
            *inputs.items(),
            *(("extra", path) for path in extra_files),
            *(("soft_labels", path) for path in prediction_files),
        ]
        description = {
            "kit": __version__,
            "format": FORMAT,
            "options": asdict(checked),
            "inputs": [
                {"role": role, "file": path.name, "sha256": file_sha256(require_file(path))}
                for role, path in files
            ],
        }

        existing = read_manifest(out)
        if existing and _is_current(existing, description) and not find_changed_file(out, existing):
            return {**existing, "reused": True}

        return _preprocess(
            out, inputs, extra_files, prediction_files, checked, description, progress
        )


def _is_current(manifest: dict, description: dict) -> bool:
    return {name: manifest.get(name) for name in description} == description


def _preprocess(
    out: Path,
    inputs: dict[str, Path],
    extra_files: list[Path],
    prediction_files: list[Path],
    options: PreprocessOptions,
    description: dict,
    progress: Callable[[str, int, int], None],
) -> dict:
    # Each file is read; then the rows are merged, written and checked.
    stages = len(extra_files) + 5

    # Read everything before the folder of an earlier run is touched.
    progress("reading train.csv", 0, stages)
    train = read_rows(inputs["train"], labelled=True)
    progress("reading test.csv", 1, stages)
    test = read_rows(inputs["test"], labelled=False)
    extras = []
    for done, path in enumerate(extra_files, start=2):
        progress(f"reading {path.name}", done, stages)
        rows = read_rows(
            path,
            labelled=True,
            unique_ids=False,
            label_required=False,
            unlabelled=bool(prediction_files),
        )
        extras.append(rows)

    progress("merging and splitting", stages - 3, stages)
    targets = None
    if prediction_files:
        targets = join_soft_labels(train, extras, extra_files, prediction_files)
    if "sample" in inputs:
        _check_sample(inputs["sample"], inputs["test"], test.ids)

    merged = merge_rows(train, test, extras, options.allow_test_prompts, targets)
    valid, fold = _split_rows(merged, options)
    manifest = description | _summarise(merged, valid, fold, options, [train, test, *extras])

    # Without a manifest, a folder counts as unfinished.
    progress("writing", stages - 2, stages)
    (out / MANIFEST).unlink(missing_ok=True)
    schema = _write_train(out / TRAIN_TABLE, merged, valid, fold, options.text)

    all_rows = np.ones(len(test.ids), bool)
    test_columns = [test.ids, merged.test_groups]
    _write_table(out / TEST_TABLE, TEST_SCHEMA, options.text, test.texts, all_rows, test_columns)

    outputs = [TRAIN_TABLE, TEST_TABLE]
    (out / BAYES_FILE).unlink(missing_ok=True)
    if "floor" in inputs:
        outputs.append(BAYES_FILE)
        with atomic_file(out / BAYES_FILE) as temporary:
            shutil.copyfile(inputs["floor"], temporary)

    progress("checking", stages - 1, stages)
    manifest["outputs"] = {name: file_sha256(out / name) for name in outputs}
    verify_dataset(out, manifest, train.ids, test.ids, schema)
    manifest["sha256"] = manifest_digest(manifest)
    write_json(out / MANIFEST, manifest)
    return {**manifest, "reused": False}


def _check_sample(path: Path, test_path: Path, test_ids: np.ndarray) -> None:
    """Raise a `DataError` unless sample_submission.csv and test.csv have the same ids."""
    batches = open_raw_csv(path, PREDICTION_COLUMNS).batches
    ids = np.concatenate([parse_ids(batch) for batch in batches])
    check_unique_ids(path, ids)

    for file, file_ids, other, other_ids in (
        (path, ids, test_path, test_ids),
        (test_path, test_ids, path, ids),
    ):
        missing = ~np.isin(file_ids, other_ids)
        if missing.any():
            record = int(missing.argmax())
            raise row_error(
                file,
                record,
                str(file_ids[record]),
                f"this id is not in {other}",
                "Both files must come from one download: fetch them again (`kit download`).",
            )


def _split_rows(merged: MergedRows, options: PreprocessOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return the holdout (N,) and the folds (N,).

    Extra rows go where the competition's rows of their prompt are.
    """
    own = ~merged.extra
    labels = merged.targets.labels[own]
    groups = merged.groups[own]
    extra_groups = merged.groups[merged.extra]

    split_groups = groups if options.split == "grouped" else None
    valid = split_holdout(labels, split_groups, options.valid, options.seed)
    fold = split_folds(labels, split_groups, options.folds, options.seed)
    return (
        np.concatenate([valid, inherit_split(groups, valid, extra_groups, False)]),
        np.concatenate([fold, inherit_split(groups, fold, extra_groups, -1)]),
    )


def _summarise(
    merged: MergedRows,
    valid: np.ndarray,
    fold: np.ndarray,
    options: PreprocessOptions,
    sources: list[RawRows],
) -> dict:
    """Return the counts of the manifest."""
    own = ~merged.extra
    labels = merged.targets.labels
    classes = np.bincount(labels[own], minlength=len(CLASSES))

    def count_part(chosen: np.ndarray) -> dict:
        part = np.bincount(labels[chosen & own], minlength=len(CLASSES))
        return {"rows": int(part.sum()), "classes": part.tolist()}

    counts = dict(merged.counts)
    counts["rows_with_uneven_turns"] = int(find_uneven_turns(merged.texts)[merged.keep].sum())
    if merged.targets.soft is not None:
        counts["rows_with_soft_labels"] = int((merged.targets.soft.max(1) < 1).sum())
    if merged.targets.weights is not None:
        counts["rows_of_weight_0"] = int((merged.targets.weights == 0).sum())

    return {
        "counts": counts,
        "classes": dict(zip(CLASSES, classes.tolist(), strict=True)),
        "frequencies": dict(zip(CLASSES, (classes / classes.sum()).tolist(), strict=True)),
        "holdout": count_part(valid),
        "folds": [count_part(fold == k) for k in range(options.folds)],
        "ignored_columns": sorted({name for rows in sources for name in rows.ignored}),
        "repairs": {
            name: sum(rows.repairs[name] for rows in sources) for name in sources[0].repairs
        },
    }


def _write_train(
    path: Path, merged: MergedRows, valid: np.ndarray, fold: np.ndarray, text: str
) -> pa.Schema:
    """Write the training table and return its schema."""
    schema = TRAIN_SCHEMA
    columns = [merged.ids, merged.targets.labels, merged.groups, valid, fold, merged.extra]

    if merged.targets.soft is not None:
        schema = pa.schema([*schema, *SOFT_FIELDS])
        columns += [*merged.targets.soft.T]
    if merged.targets.weights is not None:
        schema = schema.append(WEIGHT_FIELD)
        columns.append(merged.targets.weights)
    _write_table(path, schema, text, merged.texts, merged.keep, columns)
    return schema


def _write_table(
    path: Path,
    schema: pa.Schema,
    text: str,
    texts: pa.Table,
    keep: np.ndarray,
    columns: Sequence[np.ndarray],
) -> None:
    """Write the id, the kept texts in their form, and the other columns.

    The row groups are made one at a time to save memory.

    Args:
        keep: a mask of the rows of `texts`, True for N of them.
        columns: (N,) each, the id first.
    """
    rows = np.flatnonzero(keep)
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="snappy", use_dictionary=False) as writer,
    ):
        for start in range(0, len(rows), ROW_GROUP):
            group = rows[start : start + ROW_GROUP]
            low, high = group[0], group[-1] + 1
            kept = texts.slice(low, high - low).filter(pa.array(keep[low:high]))

            ids, *others = (pa.array(column[start : start + ROW_GROUP]) for column in columns)
            arrays = [ids, *_in_form(kept, text).columns, *others]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
