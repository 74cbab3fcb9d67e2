"""A processed folder: what `kit preprocess` leaves for everything after it, opened only when whole and unchanged.

train.parquet, test.parquet, perhaps the raw folder's bayes.csv, and manifest.json, which is written last.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from kit.errors import DataError
from kit.storage.atomic import file_sha256
from kit.task import BAYES_FILE, EXTRA, GROUP, HOLDOUT, ID, LABEL, SOFT_LABELS, TEXTS, WEIGHT

TRAIN_TABLE, TEST_TABLE, MANIFEST = "train.parquet", "test.parquet", "manifest.json"

_TEXTS = [pa.field(c, pa.list_(pa.string())) for c in TEXTS]
TEST_SCHEMA = pa.schema([pa.field(ID, pa.int64()), *_TEXTS, pa.field(GROUP, pa.int64())])
TRAIN_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),
        *_TEXTS,
        pa.field(LABEL, pa.int8()),
        pa.field(
            GROUP, pa.int64()
        ),  # rows of one normalised prompt; numbered together with the test rows
        pa.field("valid", pa.bool_()),  # the holdout
        pa.field("fold", pa.int16()),  # 0 to K-1; -1: always trained on
        pa.field(EXTRA, pa.bool_()),  # from an extra file: trained on, never scored
    ]
)
SOFT_FIELDS = [
    pa.field(name, pa.float64()) for name in SOFT_LABELS
]  # where the raw files have soft labels
WEIGHT_FIELD = pa.field(WEIGHT, pa.float64())  # where they have weights


@dataclass(frozen=True)
class Dataset:
    """An opened processed folder; the files are those the manifest describes, byte for byte."""

    folder: Path
    manifest: dict
    stamps: dict[str, tuple[int, int, int]] = field(
        default_factory=dict, compare=False
    )  # of the tables as opened

    @property
    def folds(self) -> int:
        """The number of cross-validation folds."""
        return self.manifest["options"]["folds"]

    @property
    def cache(self) -> Path:
        """Where tokens and toy tokenizers of these rows are kept; everything in it can be made again."""
        return self.folder / "cache"

    def digest(self, split: str) -> str:
        """The SHA-256 of the rows of "train" or "test"."""
        return self.manifest["outputs"][{"train": TRAIN_TABLE, "test": TEST_TABLE}[split]]

    def train(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The training rows, `TRAIN_SCHEMA` and perhaps `SOFT_FIELDS` and `WEIGHT_FIELD`, or some of their columns."""
        return self._read(TRAIN_TABLE, columns)

    def targets(self) -> np.ndarray:
        """What each training row teaches: its label (N,); where there are soft labels or weights, (N, 3) float32.

        These are probabilities times the row's weight, so that a row sums to its weight.
        """
        names = pq.read_schema(self.folder / TRAIN_TABLE).names
        labels = self.train([LABEL])[LABEL].to_numpy()
        if SOFT_LABELS[0] not in names and WEIGHT not in names:
            return labels
        table = self.train([name for name in (*SOFT_LABELS, WEIGHT) if name in names])
        each = np.eye(len(SOFT_LABELS))[labels]
        if SOFT_LABELS[0] in names:
            each = np.column_stack([table[name] for name in SOFT_LABELS])
        if WEIGHT in names:
            each = each * table[WEIGHT].to_numpy()[:, None]
        return each.astype(np.float32)

    def test(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The test rows, `TEST_SCHEMA`, or some of its columns, in the order of test.csv."""
        return self._read(TEST_TABLE, columns)

    def _read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, which must still be the one that was opened: rows and folds of two splits would not show."""
        table = pq.read_table(self.folder / name, columns=columns)
        if self.stamps and _stamp(self.folder / name) != self.stamps[name]:
            raise DataError(
                f"{self.folder / name} was replaced while it was in use", "Run the command again."
            )
        return table

    def fold_rows(self, fold: int | str) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers into `train()`: those to train on (T,) and those to validate on (V,).

        Args:
            fold: a fold's number, or "holdout" for the validation share. Extra rows are never validated on, rows of
                weight 0 never trained on.
        Raises:
            DataError: no such fold, or nothing to train on.
        """
        if fold != HOLDOUT and (
            not isinstance(fold, int | np.integer) or not 0 <= fold < self.folds
        ):
            raise DataError(
                f"{self.folder} has no fold {fold!r}: it has 0 to {self.folds - 1} and {HOLDOUT!r}",
                "Choose one of these, or run `kit preprocess --folds K` again.",
            )
        weight = [WEIGHT] if WEIGHT in pq.read_schema(self.folder / TRAIN_TABLE).names else []
        table = self.train(["valid", "fold", EXTRA, *weight])
        held = table["valid"].to_numpy() if fold == HOLDOUT else table["fold"].to_numpy() == fold
        taught = ~held & (table[WEIGHT].to_numpy() > 0) if weight else ~held
        if not taught.any():
            part = fold if fold == HOLDOUT else f"fold {fold}"
            raise DataError(
                f"{self.folder}: no row outside {part} has a weight above 0: there is nothing to train on",
                "Give rows a weight in the training files, and run `kit preprocess` again.",
            )
        return np.flatnonzero(taught), np.flatnonzero(held & ~table[EXTRA].to_numpy())

    def floor(self) -> Path | None:
        """The true probabilities of the rows, where the raw folder has them (a sample has, a competition has not)."""
        path = self.folder / BAYES_FILE
        return path if BAYES_FILE in self.manifest["outputs"] else None


def open_dataset(folder: str | Path) -> Dataset:
    """Opens the folder that `kit preprocess` wrote.

    Raises:
        DataError: it is missing or unfinished, or a file is not the one that the manifest describes.
    """
    folder = Path(folder)
    again = f"Run `kit preprocess --out {folder}` again."
    manifest = read_manifest(folder)
    if manifest is None:
        what = (
            "no such folder"
            if not folder.exists()
            else f"no {MANIFEST} that can be read, so it is not finished"
        )
        raise DataError(f"{folder}: {what}", f"Run `kit preprocess --out {folder}` first.")
    try:
        stamps = {name: _stamp(folder / name) for name in (TRAIN_TABLE, TEST_TABLE)}
    except OSError:
        stamps = {}  # one is missing: said next
    changed = changed_file(folder, manifest)
    if changed:
        raise DataError(
            f"{changed}: its SHA-256 is not the one in {MANIFEST}: the file was changed or removed",
            again,
        )
    return Dataset(folder, manifest, stamps)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Tells a file from another one that has taken its name."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def changed_file(folder: Path, manifest: dict) -> Path | None:
    """The first file that is not the one the manifest describes, if there is one."""
    files = ((folder / name, digest) for name, digest in manifest["outputs"].items())
    return next(
        (path for path, digest in files if not path.is_file() or file_sha256(path) != digest), None
    )


def read_manifest(folder: Path) -> dict | None:
    """The manifest, or None if there is none of this form, or it was changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = (
            {TRAIN_TABLE, TEST_TABLE}
            <= set(manifest["outputs"])
            <= {TRAIN_TABLE, TEST_TABLE, BAYES_FILE}
        )
        whole = whole and manifest["sha256"] == manifest_digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if whole else None


def manifest_digest(manifest: dict) -> str:
    """A hash over everything else that a manifest says, so that not even its own counts and options can change."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
