"""Save classical models in the folders of folds, and predict with them. Use `ClassicalFold.load`.

A fold keeps its model's arrays in model.safetensors, its texts, such as the trees, in files of
their own, and in config.json the model's name, the features that it reads and the hashes of its
files. Nothing is pickled. Only a model that reads an encoder's similarities needs torch; its fold
has the encoder's tokenizer and a reference to its weights.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kit.baselines.models import FORMAT, MODELS, ClassicalModel
from kit.baselines.rows import (
    FEATURE_NAMES,
    SIMILARITY_FEATURE_NAMES,
    PairRows,
    Similarities,
    pair_rows,
)
from kit.data.prediction_rows import PredictionRows, Progress, TimeLimit
from kit.errors import RunError
from kit.fold_dir import CLASSICAL, CONFIG_FILE
from kit.storage.atomic import atomic_file, file_sha256, read_text_file, write_json, write_text
from kit.task import TEXTS

if TYPE_CHECKING:
    from kit.baselines.similarity import Embedder

WEIGHTS_FILE = "model.safetensors"

_REFIT = "Fit it again, or copy the folder whole."


@dataclass(frozen=True)
class ClassicalFold:
    """A fold's classical model in memory.

    Attributes:
        embedder: whose similarities are among its features; None for a model that reads none.
    """

    model: ClassicalModel
    embedder: "Embedder | None" = None

    @classmethod
    def load(cls, folder: Path) -> "ClassicalFold":
        """Load the model that `save_classical` wrote.

        Raises:
            RunError: it is missing, damaged, or of another version of kit.
        """
        model, is_embedded = load_classical(folder)
        if not is_embedded:
            return cls(model)

        from kit.baselines.similarity import Embedder

        return cls(model, Embedder.load(folder))

    def predict(
        self,
        source: PredictionRows,
        rows: np.ndarray,
        progress: Progress,
        limit: TimeLimit | None = None,
    ) -> np.ndarray:
        """Return the probabilities of these rows, (N, 3) float64; every process computes all.

        It takes seconds, whatever the `limit`, and with an embedder as long as that reads.
        """
        pairs = self.read(source, limit.log if limit else lambda _: None)
        probabilities = self.model.predict(pairs.take(rows))
        progress(len(rows), len(rows))
        return probabilities

    def read(self, source: PredictionRows, log: Callable[[str], None]) -> PairRows:
        """Return the rows as the model sees them; all folds share one computation of them.

        Args:
            log: called with how far an embedder has come.
        """
        ngrams = self.model.reads_ngrams
        encoder = self.embedder and self.embedder.reference.digest
        return source.derive(
            ("pairs", ngrams, encoder), lambda _: read_pairs(source, ngrams, self.embedder, log)
        )


def read_pairs(
    source: PredictionRows,
    ngrams: bool,
    embedder: "Embedder | None" = None,
    log: Callable[[str], None] = lambda _: None,
) -> PairRows:
    """Return rows as a classical model sees them, with an embedder's similarities if it has one."""
    pairs = pair_rows(source.table, ngrams)
    return pairs.with_similarities(embedder.measure(source, log)) if embedder else pairs


def save_classical(
    model: ClassicalModel, name: str, folder: Path, embedder: "Embedder | None" = None
) -> None:
    """Write a model's files, config.json last.

    Args:
        name: of the model, one of `MODELS`.
        folder: the fold's folder.
        embedder: whose similarities it reads, if it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {field.name: getattr(model, field.name) for field in fields(model)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    texts = {f"{name}.txt": values[name] for name in values.keys() - arrays.keys()}
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    for file, text in texts.items():
        write_text(folder / file, text)

    config = {
        "kind": CLASSICAL,
        "format": FORMAT,
        "model": name,
        "features": FEATURE_NAMES,
        "files": {file: file_sha256(folder / file) for file in (WEIGHTS_FILE, *texts)},
    }
    if embedder:
        embedder.tokenizer.save(folder)
        config |= {"features": SIMILARITY_FEATURE_NAMES, "base": asdict(embedder.reference)}
    write_json(folder / CONFIG_FILE, config)


def load_classical(folder: Path) -> tuple[ClassicalModel, bool]:
    """Return the model that `save_classical` wrote, and whether it reads similarities.

    Raises:
        RunError: a file is missing or damaged, was written by a newer kit, or by another one whose
            features are not those of this kit.
    """
    try:
        config = json.loads(read_text_file(folder / CONFIG_FILE))
        if config["format"] > FORMAT:
            raise RunError(
                f"{folder}: written by a newer kit (format {config['format']})", "Upgrade kit."
            )
        is_embedded = "base" in config
        expected = SIMILARITY_FEATURE_NAMES if is_embedded else FEATURE_NAMES
        if config["format"] < FORMAT or config["features"] != expected:
            raise RunError(
                f"{folder}: reads features that this kit does not compute",
                "Fit it again, or predict with the kit that fitted it (`kit` in origin.json).",
            )
        kind = MODELS[config["model"]]
        values: dict[str, Any] = load_file(_check_digest(folder / WEIGHTS_FILE, config["files"]))
        texts = [field.name for field in fields(kind) if field.name not in values]
        for name in texts:
            values[name] = read_text_file(_check_digest(folder / f"{name}.txt", config["files"]))
        model = kind(**values)

        # One row shows whether the parts of the model belong together.
        blank = pa.table({name: pa.array([[""]], pa.list_(pa.string())) for name in TEXTS})
        pairs = pair_rows(blank, model.reads_ngrams)
        if is_embedded:
            pairs = pairs.with_similarities(Similarities.blank(1))
        if not np.isfinite(model.predict(pairs)).all():
            raise ValueError("its probabilities are not finite")
        return model, is_embedded
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(f"{folder}: not a classical model of kit: {error}", _REFIT) from error


def _check_digest(file: Path, digests: dict[str, str]) -> Path:
    """Return the file if its hash is the listed one; raise RunError if it is not.

    LightGBM ends the whole process where its text is damaged, so it must not see such a text.
    """
    if file_sha256(file) != digests[file.name]:
        raise RunError(f"{file} has changed since the model was fitted", _REFIT)
    return file
