"""Find and check the files of one trained fold in a run directory. Use `FoldDir`.

`metrics.json` is written last, so its presence means finished; it lists the hashes of the files
beside it that others read, which `check_files` compares.
"""

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kit.errors import RunError
from kit.predictions import read_predictions
from kit.storage.atomic import file_sha256, read_text_file
from kit.storage.contents import describe_impostor, missing_bytes

# Of a fold, and of a run the summary of its folds.
METRICS_FILE = "metrics.json"

# What describes a fold's model. Its `kind` says what reads it; that of a network is left out.
CONFIG_FILE = "config.json"
NETWORK = "network"
CLASSICAL = "classical"

# Files of a fold: the learning curve, earlier attempts of a training that collapsed, and why its
# last one did.
HISTORY_FILE = "trainer_state.json"
ATTEMPTS_FILE = "tried.json"
COLLAPSE_FILE = "collapsed.json"

# Among a fold's checkpoints: the tokens of a forward pass, so that a resumed training takes the
# same passes, and draws the same dropout, however much memory is free then.
PASSES_FILE = "passes.json"

# A fold's model consists of its files with these suffixes, without the logs, which no prediction
# reads.
MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".txt")
LOG_FILES = (HISTORY_FILE, ATTEMPTS_FILE, COLLAPSE_FILE, METRICS_FILE)

_WEIGHTS_SUFFIX = ".safetensors"

RESTORE_HINT = "Copy the run directory again, or train it again."
_RESTART = "Delete the folder that it is in, and train that fold again."


@dataclass(frozen=True)
class FoldDir:
    """The folder of one trained fold of a run, or of its holdout."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the folder: "holdout", "fold0", "fold1", …"""
        return self.path.name

    @property
    def predictions_path(self) -> Path:
        """The predictions of the validation rows, which this fold was not trained on."""
        return self.path / "valid.csv"

    @property
    def history_path(self) -> Path:
        """The learning curve: losses and learning rates by step."""
        return self.path / HISTORY_FILE

    @property
    def attempts_path(self) -> Path:
        """A record of earlier attempts that collapsed, while the training is unfinished."""
        return self.path / ATTEMPTS_FILE

    @property
    def collapse_path(self) -> Path:
        """Why the training collapsed; it is there until the fold is trained again."""
        return self.path / COLLAPSE_FILE

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that collapsed so far, each with its rates and why it ended.

        Raises:
            RunError: the record is damaged; which attempt the checkpoints are of is unknown.
        """
        if not self.attempts_path.exists():
            return []
        attempts = _parse_json(self.attempts_path, _RESTART)
        if not isinstance(attempts, list) or not all(isinstance(one, dict) for one in attempts):
            raise RunError(f"{self.attempts_path}: not a list of attempts", _RESTART)
        return attempts

    @property
    def metrics_path(self) -> Path:
        """The metrics, which are written last."""
        return self.path / METRICS_FILE

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.metrics_path.is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """Losses, steps, versions and the model's files, as training wrote them at its end.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_run_json(self.metrics_path)

    @property
    def has_model(self) -> bool:
        """Whether it keeps a model; baselines of kit before 0.2.0 kept predictions alone."""
        return (self.path / CONFIG_FILE).is_file() or CONFIG_FILE in self.metrics.get("files", {})

    @property
    def kind(self) -> str:
        """What its model is, which decides what reads it.

        Raises:
            RunError: config.json is missing or damaged.
        """
        return str(read_run_json(self.path / CONFIG_FILE).get("kind", NETWORK))

    def figure(self, name: str) -> float:
        """Return one of the metrics, a number of at least 0.

        Raises:
            RunError: it is missing or something else: the file was changed.
        """
        value: Any = self.metrics.get(name)
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
            raise RunError(f"{self.metrics_path}: {name} is {str(value)[:40]!r}", RESTORE_HINT)
        return value

    @property
    def predictions(self) -> pd.DataFrame:
        """The prediction frame of the rows that were not trained on."""
        return read_predictions(self.predictions_path)

    def file_digests(self) -> dict[str, str]:
        """The SHA-256 of each file of the model and of the predictions, by name."""
        files = sorted(
            path
            for path in self.path.iterdir()
            if path == self.predictions_path
            or (path.suffix in MODEL_SUFFIXES and path.name not in LOG_FILES)
        )
        return {path.name: file_sha256(path) for path in files}

    def check_files(self, weights: bool = True) -> None:
        """Compare the files with the hashes that training left.

        Args:
            weights: read the weights too. Otherwise only their length is compared, which is enough
                for those who read the predictions alone.

        Raises:
            RunError: a file is missing, incomplete or has changed.
        """
        check_listed_files(self.metrics_path, weights)


def check_listed_files(metrics: Path, weights: bool) -> None:
    """Compare the files next to a metrics.json with the hashes it lists.

    Raises:
        RunError: a file is missing, incomplete or has changed.
    """
    # Runs of the first versions of kit list no files.
    files = read_run_json(metrics).get("files", {})
    if not isinstance(files, dict):
        raise RunError(f"{metrics}: `files` is not a JSON object", RESTORE_HINT)

    for name, digest in files.items():
        path = metrics.parent / name
        if not path.is_file():
            raise RunError(f"{path}: this file of the run is missing", RESTORE_HINT)
        if not weights and path.suffix == _WEIGHTS_SUFFIX:
            whole = missing_bytes(path) == 0
        else:
            whole = _digest_once(path) == digest
        if not whole:
            problem = describe_impostor(path).partition(":")[0]
            problem = problem or "has changed: its SHA-256 is not the one in metrics.json"
            raise RunError(f"{path} {problem}", RESTORE_HINT)


def _digest_once(path: Path) -> str:
    """Return the SHA-256 of a file, from memory where this process has just computed it."""
    state = path.stat()
    return _cached_digest(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _cached_digest(path: Path, *_: int) -> str:
    return file_sha256(path)


def read_run_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that kit wrote."""
    content = _parse_json(path, RESTORE_HINT)
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a JSON object", RESTORE_HINT)
    return content


def _parse_json(path: Path, hint: str) -> Any:
    """Read JSON that kit wrote; NaN and Infinity, which kit never writes, are refused."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(read_text_file(path), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}", hint) from error
