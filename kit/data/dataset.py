"""Open the folder that `kit preprocess` writes, only if it is complete and unchanged.

Use `open_dataset`. The folder holds train.parquet, test.parquet, bayes.csv if the raw folder has
it, and manifest.json, which is written last.
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
from kit.storage.atomic import file_sha256, read_text_file
from kit.task import BAYES_FILE, EXTRA, GROUP, HOLDOUT, ID, LABEL, SOFT_LABELS, TEXTS, WEIGHT

TRAIN_TABLE = "train.parquet"
TEST_TABLE = "test.parquet"
MANIFEST = "manifest.json"

# Group numbers are shared by training and test rows. A fold is 0 to K-1, or -1 for rows that are
# always trained on. Extra rows are trained on and never scored.
_TEXTS = [pa.field(name, pa.list_(pa.string())) for name in TEXTS]
TEST_SCHEMA = pa.schema([pa.field(ID, pa.int64()), *_TEXTS, pa.field(GROUP, pa.int64())])
TRAIN_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.int64()),
        *_TEXTS,
        pa.field(LABEL, pa.int8()),
        pa.field(GROUP, pa.int64()),
        pa.field("valid", pa.bool_()),
        pa.field("fold", pa.int16()),
        pa.field(EXTRA, pa.bool_()),
    ]
)

# Appended if the raw files have soft labels, or weights.
SOFT_FIELDS = [pa.field(name, pa.float64()) for name in SOFT_LABELS]
WEIGHT_FIELD = pa.field(WEIGHT, pa.float64())


@dataclass(frozen=True)
class Dataset:
    """An opened processed folder, whose files are those in the manifest, byte for byte.

    Attributes:
        manifest: counts, repairs, class frequencies, options and hashes.
        stamps: of the tables when they were opened.
        reused: the folder was up to date when `kit.preprocess` was asked for it.
    """

    folder: Path
    manifest: dict
    stamps: dict[str, tuple[int, int, int]] = field(default_factory=dict, compare=False)
    reused: bool = field(default=False, compare=False)

    @property
    def folds(self) -> int:
        """Return the number of cross-validation folds."""
        return self.manifest["options"]["folds"]

    @property
    def cache(self) -> Path:
        """Return the folder for tokens, features and toy tokenizers of these rows.

        It may be deleted at any time.
        """
        return self.folder / "cache"

    def digest(self, split: str) -> str:
        """Return the SHA-256 of the table "train" or "test"."""
        return self.manifest["outputs"][{"train": TRAIN_TABLE, "test": TEST_TABLE}[split]]

    def train(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the training rows, or some of their columns.

        They have the columns of `TRAIN_SCHEMA`, and perhaps `SOFT_FIELDS` and `WEIGHT_FIELD`.
        """
        return self._read_table(TRAIN_TABLE, columns)

    def test(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the test rows (`TEST_SCHEMA`), or some columns, in the order of test.csv."""
        return self._read_table(TEST_TABLE, columns)

    def targets(self) -> np.ndarray:
        """Return the training targets: labels (N,), or with soft labels or weights (N, 3) float32.

        The latter are probabilities times the row's weight, so that a row sums to its weight.
        """
        names = pq.read_schema(self.folder / TRAIN_TABLE).names
        labels = self.train([LABEL])[LABEL].to_numpy()
        if SOFT_LABELS[0] not in names and WEIGHT not in names:
            return labels

        table = self.train([name for name in (*SOFT_LABELS, WEIGHT) if name in names])
        targets = np.eye(len(SOFT_LABELS))[labels]

        if SOFT_LABELS[0] in names:
            targets = np.column_stack([table[name] for name in SOFT_LABELS])
        if WEIGHT in names:
            targets = targets * table[WEIGHT].to_numpy()[:, None]
        return targets.astype(np.float32)

    def fold_rows(self, fold: int | str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of `train()` to train on (T,) and to validate on (V,), as numbers.

        Extra rows are never validated on, rows of weight 0 never trained on.

        Args:
            fold: a fold's number, or "holdout".

        Raises:
            DataError: there is no such fold, or nothing to train on.
        """
        is_fold = isinstance(fold, int | np.integer) and 0 <= fold < self.folds
        if fold != HOLDOUT and not is_fold:
            raise DataError(
                f"{self.folder} has no fold {fold!r}, only 0 to {self.folds - 1} and {HOLDOUT!r}",
                "Choose one of these, or run `kit preprocess --folds K` again.",
            )

        has_weights = WEIGHT in pq.read_schema(self.folder / TRAIN_TABLE).names
        table = self.train(["valid", "fold", EXTRA, *([WEIGHT] if has_weights else [])])
        if fold == HOLDOUT:
            validation = table["valid"].to_numpy()
        else:
            validation = table["fold"].to_numpy() == fold
        training = ~validation
        if has_weights:
            training &= table[WEIGHT].to_numpy() > 0

        if not training.any():
            part = fold if fold == HOLDOUT else f"fold {fold}"
            raise DataError(
                f"{self.folder}: nothing to train on: no row outside {part} has a weight above 0",
                "Give rows a weight in the training files, and run `kit preprocess` again.",
            )
        return np.flatnonzero(training), np.flatnonzero(validation & ~table[EXTRA].to_numpy())

    def bayes_file(self) -> Path | None:
        """Return the file with the true probabilities of a sample's rows; None for other rows."""
        path = self.folder / BAYES_FILE
        return path if BAYES_FILE in self.manifest["outputs"] else None

    def _read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, after checking that it is still the one that was opened.

        Otherwise rows and folds of different splits could be mixed unnoticed.
        """
        table = pq.read_table(self.folder / name, columns=columns)

        if self.stamps and _file_stamp(self.folder / name) != self.stamps[name]:
            raise DataError(
                f"{self.folder / name} was replaced while it was in use", "Run the command again."
            )
        return table


@dataclass(frozen=True)
class SampledDataset(Dataset):
    """Some of the training rows of a dataset, with caches in a folder of their own.

    Attributes:
        rows: their numbers; those of `fold_rows` count within them.
        scratch: the folder for caches.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), compare=False)
    scratch: Path = Path()

    @property
    def cache(self) -> Path:
        """Return the folder for caches."""
        return self.scratch

    def _read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        return super()._read_table(name, columns).take(pa.array(self.rows))


def sample_dataset(dataset: Dataset, rows: np.ndarray, scratch: Path) -> SampledDataset:
    """Return a dataset of some training rows, which caches nothing beside the others."""
    return SampledDataset(
        dataset.folder, dataset.manifest, dataset.stamps, rows=rows, scratch=scratch
    )


def open_dataset(folder: str | Path) -> Dataset:
    """Open a folder that `kit preprocess` wrote.

    Raises:
        DataError: it is missing or unfinished, or a file is not the one in the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        problem = "no such folder"
        if folder.exists():
            problem = f"no readable {MANIFEST}, so preprocessing has not finished"
        raise DataError(f"{folder}: {problem}", f"Run `kit preprocess --out {folder}` first.")

    # A missing table is reported by the next check.
    try:
        stamps = {name: _file_stamp(folder / name) for name in (TRAIN_TABLE, TEST_TABLE)}
    except OSError:
        stamps = {}

    changed = find_changed_file(folder, manifest)
    if changed:
        raise DataError(
            f"{changed}: the file was changed or removed (its SHA-256 is not that in {MANIFEST})",
            f"Run `kit preprocess --out {folder}` again.",
        )
    return Dataset(folder, manifest, stamps)


def _file_stamp(path: Path) -> tuple[int, int, int]:
    """Return what distinguishes a file from a later one of the same name."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def find_changed_file(folder: Path, manifest: dict) -> Path | None:
    """Return the first file that is not the one in the manifest, or None."""
    for name, digest in manifest["outputs"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            return path
    return None


def read_manifest(folder: Path) -> dict | None:
    """Return the manifest, or None if there is none of this form, or it was changed."""
    try:
        manifest = json.loads(read_text_file(folder / MANIFEST))
        outputs = set(manifest["outputs"])
        complete = {TRAIN_TABLE, TEST_TABLE} <= outputs <= {TRAIN_TABLE, TEST_TABLE, BAYES_FILE}
        unchanged = manifest["sha256"] == manifest_digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

    return manifest if complete and unchanged else None


def manifest_digest(manifest: dict) -> str:
    """Return a hash of everything else in the manifest, which protects counts and options too."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
