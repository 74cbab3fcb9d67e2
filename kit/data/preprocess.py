"""From raw CSV files to a processed folder: cleaned, labelled, split rows as Parquet, and a manifest that says how.

The same inputs and options give the same bytes; a folder whose manifest matches is left as it is.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from kit import __version__
from kit.data import clean
from kit.data import split as splits
from kit.data.csv_source import require_file
from kit.data.dataset import (
    MANIFEST,
    SOFT_FIELDS,
    TEST_SCHEMA,
    TEST_TABLE,
    TRAIN_SCHEMA,
    TRAIN_TABLE,
    WEIGHT_FIELD,
    changed_file,
    manifest_digest,
    read_manifest,
)
from kit.data.deduplicate import MergedRows, inherit_split, merge_rows
from kit.data.raw_csv import check_unique_ids, parse_ids, read_raw, row_error
from kit.data.rows import RawRows, read_rows
from kit.data.soft_labels import join_soft_labels
from kit.data.verify import verify_dataset
from kit.errors import KitError
from kit.storage.atomic import atomic_file, file_sha256, write_json
from kit.storage.lock import hold_lock
from kit.task import BAYES_FILE, CLASSES, ID, PREDICTION_COLUMNS, SAMPLE_FILE, TEST_FILE, TRAIN_FILE

FORMAT = (
    2  # of the processed folder: raised when the same inputs and options come to mean other bytes
)
ROW_GROUP = 4096  # rows; fixed, so that the bytes are


@dataclass(frozen=True)
class PreprocessOptions:
    """What, with the input files, decides the bytes of the output; checked on creation (`KitError`)."""

    text: str
    split: str
    folds: int
    valid: float
    seed: int
    allow_test_prompts: bool

    def __post_init__(self) -> None:
        _check_choice("text", self.text, clean.FORMS)
        _check_choice("split", self.split, splits.SPLITS)
        if not 2 <= self.folds <= 100:
            raise KitError(f"--folds is {self.folds}", "Choose 2 to 100 folds.")
        if not 0 < self.valid <= 0.5:
            raise KitError(
                f"--valid is {self.valid:g}", "Choose a share above 0 and up to 0.5, such as 0.1."
            )
        if not 0 <= self.seed < 2**32:
            raise KitError(f"--seed is {self.seed}", "Choose a whole number from 0 to 4294967295.")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise KitError(f"--{name} is {value!r}", f"Choose one of {', '.join(choices)}.")


def prepare_input(path: str | Path, text: str) -> pa.Table:
    """Any CSV file with the columns of test.csv as the table a model predicts on: id and the three texts, in order.

    Args:
        text: the form that the model was trained on, "unicode" or "ascii".
    Raises:
        DataError: the file cannot be used; names the row and the id.
    """
    _check_choice("text", text, clean.FORMS)
    rows = read_rows(path, labelled=False)
    return _in_form(rows.texts, text).add_column(0, ID, pa.array(rows.ids))


def _in_form(texts: pa.Table, text: str) -> pa.Table:
    return clean.to_ascii(texts) if text == "ascii" else texts


def preprocess_files(
    raw: str | Path,
    out: str | Path,
    *,
    extra: Sequence[str | Path] = (),
    soft_labels: Sequence[str | Path] = (),
    text: str = "unicode",
    split: str = "grouped",
    folds: int = 5,
    valid: float = 0.1,
    seed: int = 0,
    allow_test_prompts: bool = False,
) -> dict:
    """Reads the raw folder, and writes `train.parquet`, `test.parquet` and, last, `manifest.json` to `out`.

    What an earlier run left in `out` is replaced, unless it is what this run would write.

    Args:
        raw: the folder of train.csv and test.csv; sample_submission.csv is held against test.csv if it is there.
        extra: further training files with the columns of train.csv (model names optional), merged and de-duplicated:
            trained on, never scored. Any training file may have soft labels and weights (`kit.data.labels`); here
            soft labels are enough.
        soft_labels: prediction frames whose rows are taken as soft labels, by id (`kit.data.soft_labels`).
        text: "unicode" or "ascii" (see `kit.data.clean`).
        split: "grouped" or "stratified" (see `kit.data.split`).
        valid: the share of the holdout, above 0 and up to 0.5.
        allow_test_prompts: keep extra rows whose prompt is in test.csv.
    Returns:
        The manifest, and under "reused" whether the folder was up to date already.
    Raises:
        DataError: an input file cannot be used; names the file, row and id.
        KitError: an option is out of range, or `out` cannot be the processed folder.
        HeldError: another process is writing `out`.
    """
    options = PreprocessOptions(text, split, folds, valid, seed, allow_test_prompts)
    raw, out = Path(raw), Path(out)
    if out.exists() and (not out.is_dir() or out.resolve() == raw.resolve()):
        raise KitError(
            f"{out} is {'the raw folder' if out.is_dir() else 'a file'}",
            "Name another folder with --out.",
        )
    with hold_lock(out):
        return _preprocess(raw, out, extra, soft_labels, options)


def _preprocess(
    raw: Path,
    out: Path,
    extra: Sequence[str | Path],
    soft_labels: Sequence[str | Path],
    options: PreprocessOptions,
) -> dict:
    optional = {"sample": raw / SAMPLE_FILE, "floor": raw / BAYES_FILE}
    inputs = {"train": raw / TRAIN_FILE, "test": raw / TEST_FILE} | {
        r: p for r, p in optional.items() if p.exists()
    }
    files = [*inputs.items(), *(("extra", Path(path)) for path in extra)]
    files += [("soft_labels", Path(path)) for path in soft_labels]
    described = {
        "kit": __version__,
        "format": FORMAT,
        "options": asdict(options),
        "inputs": [
            {"role": role, "file": p.name, "sha256": file_sha256(require_file(p))}
            for role, p in files
        ],
    }
    before = read_manifest(out)
    if (
        before
        and {key: before.get(key) for key in described} == described
        and not changed_file(out, before)
    ):
        return {**before, "reused": True}

    train, test = (
        read_rows(inputs["train"], labelled=True),
        read_rows(inputs["test"], labelled=False),
    )
    sources = [Path(path) for path in extra]
    anonymous = {"unique_ids": False, "pseudo": True, "unlabelled": bool(soft_labels)}
    extras = [read_rows(path, labelled=True, **anonymous) for path in sources]
    lessons = (
        join_soft_labels(train, extras, sources, [Path(path) for path in soft_labels])
        if soft_labels
        else None
    )
    if "sample" in inputs:
        _check_sample(inputs["sample"], inputs["test"], test.ids)
    merged = merge_rows(train, test, extras, options.allow_test_prompts, lessons)
    valid_rows, fold = _cut(merged, options)
    manifest = described | _counts(merged, valid_rows, fold, options, [train, test, *extras])
    columns, schema = (
        [merged.ids, merged.labels, merged.groups, valid_rows, fold, merged.extra],
        TRAIN_SCHEMA,
    )
    if merged.soft is not None:
        columns, schema = [*columns, *merged.soft.T], pa.schema([*schema, *SOFT_FIELDS])
    if merged.weights is not None:
        columns, schema = [*columns, merged.weights], schema.append(WEIGHT_FIELD)
    (out / MANIFEST).unlink(missing_ok=True)
    _write(out / TRAIN_TABLE, schema, options.text, merged.texts, merged.keep, columns)
    every = np.ones(len(test.ids), bool)
    _write(
        out / TEST_TABLE,
        TEST_SCHEMA,
        options.text,
        test.texts,
        every,
        [test.ids, merged.test_groups],
    )
    outputs = [TRAIN_TABLE, TEST_TABLE]
    (out / BAYES_FILE).unlink(missing_ok=True)
    if "floor" in inputs:
        outputs.append(BAYES_FILE)
        with atomic_file(out / BAYES_FILE) as temporary:
            shutil.copyfile(inputs["floor"], temporary)
    manifest["outputs"] = {name: file_sha256(out / name) for name in outputs}
    verify_dataset(out, manifest, train.ids, test.ids, schema)
    manifest["sha256"] = manifest_digest(manifest)
    write_json(out / MANIFEST, manifest)
    return {**manifest, "reused": False}


def _check_sample(path: Path, test_path: Path, test_ids: np.ndarray) -> None:
    ids = np.concatenate([parse_ids(batch) for batch in read_raw(path, PREDICTION_COLUMNS).batches])
    check_unique_ids(path, ids)
    for one, having, other, lacking in (
        (path, ids, test_path, test_ids),
        (test_path, test_ids, path, ids),
    ):
        strange = ~np.isin(having, lacking)
        if strange.any():
            record = int(strange.argmax())
            remedy = "Both files must come from one download: fetch them again (`kit download`)."
            raise row_error(one, record, str(having[record]), f"this id is not in {other}", remedy)


def _cut(merged: MergedRows, options: PreprocessOptions) -> tuple[np.ndarray, np.ndarray]:
    """The holdout (N,) and the folds (N,); extra rows go where the competition's rows of their prompt are."""
    own = ~merged.extra
    labels, groups = merged.labels[own], merged.groups[own]
    by = groups if options.split == "grouped" else None
    held = splits.split_holdout(labels, by, options.valid, options.seed)
    fold = splits.split_folds(labels, by, options.folds, options.seed)
    others = merged.groups[merged.extra]
    return (
        np.concatenate([held, inherit_split(groups, held, others, False)]),
        np.concatenate([fold, inherit_split(groups, fold, others, -1)]),
    )


def _counts(
    merged: MergedRows,
    valid: np.ndarray,
    fold: np.ndarray,
    options: PreprocessOptions,
    sources: list[RawRows],
) -> dict:
    own = ~merged.extra
    taught = (
        {}
        if merged.soft is None
        else {"rows_with_soft_labels": int((merged.soft.max(1) < 1).sum())}
    )
    if merged.weights is not None:
        taught["rows_of_weight_0"] = int((merged.weights == 0).sum())
    uneven = int(clean.uneven_turns(merged.texts)[merged.keep].sum())
    classes = np.bincount(merged.labels[own], minlength=len(CLASSES))

    def part(chosen: np.ndarray) -> dict:
        counts = np.bincount(merged.labels[chosen & own], minlength=len(CLASSES))
        return {"rows": int(counts.sum()), "classes": counts.tolist()}

    return {
        "counts": merged.counts | {"rows_with_uneven_turns": uneven} | taught,
        "classes": dict(zip(CLASSES, classes.tolist(), strict=True)),
        "frequencies": dict(zip(CLASSES, (classes / classes.sum()).tolist(), strict=True)),
        "holdout": part(valid),
        "folds": [part(fold == k) for k in range(options.folds)],
        "ignored_columns": sorted({name for rows in sources for name in rows.ignored}),
        "repairs": {
            name: sum(rows.repairs[name] for rows in sources) for name in sources[0].repairs
        },
    }


def _write(
    path: Path,
    schema: pa.Schema,
    text: str,
    texts: pa.Table,
    keep: np.ndarray,
    columns: Sequence[np.ndarray],
) -> None:
    """Writes the id, the kept texts in their form, and the other columns, a row group at a time to save memory."""
    rows = np.flatnonzero(keep)
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="snappy", use_dictionary=False) as writer,
    ):
        for start in range(0, len(rows), ROW_GROUP):
            some = rows[start : start + ROW_GROUP]
            low, high = some[0], some[-1] + 1
            part = _in_form(texts.slice(low, high - low).filter(pa.array(keep[low:high])), text)
            first, *others = (pa.array(column[start : start + ROW_GROUP]) for column in columns)
            writer.write_table(pa.Table.from_arrays([first, *part.columns, *others], schema=schema))
