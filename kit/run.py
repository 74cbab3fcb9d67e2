"""Open and create run directories, the only memory between commands. Use `Run`.

    runs/<name>/recipe.toml            the experiment, defaults included; a baseline has none
                origin.json            hashes of the data, recipe and backbone folder that it was
                                       made from, and the version of kit; of a baseline, its name
                holdout/ or fold<k>/   model.safetensors, config.json, tokenizer, valid.csv,
                                       trainer_state.json, metrics.json; a baseline has neither
                                       tokenizer nor trainer_state.json
                metrics.json           a summary of the finished folds
                oof.csv                once every fold is finished
                test.csv, test.json    predictions of the test rows, and whose models they are of
                ended.json             in place of a fold that a sweep gave up: which sweep, and why

The folder of a fold is `fold_dir.FoldDir`.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import pandas as pd

from kit import __version__
from kit.data.dataset import Dataset
from kit.errors import RecipeError, RunError
from kit.fold_dir import (
    METRICS_FILE,
    PASSES_FILE,
    RESTORE_HINT,
    FoldDir,
    check_listed_files,
    read_run_json,
)
from kit.predictions import read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.storage.atomic import file_sha256, read_text_file, write_json, write_text
from kit.storage.lock import hold_lock
from kit.task import HOLDOUT, ID, TEST_FILE
from kit.wording import find_nearest, propose

T = TypeVar("T")

# The version of origin.json. It rises when an older kit could no longer use the run.
FORMAT = 1

# Where runs are, if no other folder is named.
RUNS = Path("runs")

# So many runs are named in an error; of more, the command that lists them.
_FEW = 4

# The options of `kit preprocess` that a run records about its rows.
DATA_OPTIONS = ("text", "split", "folds", "valid", "seed")

# Files of a run.
RECIPE_FILE = "recipe.toml"
ORIGIN_FILE = "origin.json"

# What a sweep leaves of a run that it gave up.
ENDED_FILE = "ended.json"

# The predictions that a run learns from beside the labels.
TEACHER_FILE = "teacher.csv"

# The files of a run in which nothing has been learned yet.
_FIRST_FILES = {RECIPE_FILE, ORIGIN_FILE, TEACHER_FILE, PASSES_FILE}


@dataclass(frozen=True)
class Run:
    """A run directory: one experiment, its trained folds and what they predict."""

    path: Path

    @classmethod
    def create(cls, runs: Path, recipe: Recipe, origin: dict[str, Any]) -> "Run":
        """Return the run of `recipe` under `runs`, creating it if it is new.

        Args:
            origin: the data and backbone that it is made from (see `make_origin`).

        Raises:
            RunError: the run exists and has another recipe, other data, or a changed backbone
                folder.
        """
        run = cls(runs / recipe.run_name)
        if not run.recipe_path.exists():
            text = recipe.to_toml()
            content = {"format": FORMAT, **origin, "recipe": _digest_of_toml(text)}
            write_json(run.origin_path, content)
            write_text(run.recipe_path, text)
            return run

        if run.recipe.hash != recipe.hash:
            raise RunError(
                f"{run.path}: its recipe.toml was edited",
                "Restore it, or train into another --runs folder.",
            )
        run.check_data(origin["data"])
        before = run.origin.get("backbone")
        now = origin.get("backbone")
        if before and now and before != now:
            raise RunError(
                f"{run.path}: the files in the backbone folder {recipe.backbone} have changed "
                "since this run began",
                "Restore them, or train into another --runs folder.",
            )
        return run

    @classmethod
    def create_baseline(
        cls, path: Path, name: str, origin: dict[str, Any], embed: str = ""
    ) -> "Run":
        """Return the run of the baseline `name` in the folder `path`, creating it if it is new.

        Args:
            embed: the encoder whose similarities it reads, as it was named.

        Raises:
            RunError: the run exists and was made from other data.
        """
        run = cls(path)
        if run.origin_path.exists():
            run.check_data(origin["data"])
        else:
            embedded = {"embed": embed} if embed else {}
            write_json(run.origin_path, {**origin, "baseline": name, **embedded})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open an existing run directory.

        Raises:
            RunError: the folder is not a run directory, or a newer kit made it.
        """
        run = cls(Path(path))
        if not run.has_begun:
            raise RunError(f"{path} is not a run directory", _name_nearest_run(run.path))

        version = run.origin.get("format", FORMAT)
        if not isinstance(version, int) or version > FORMAT:
            raise RunError(
                f"{path} was made by kit {run.origin.get('kit')}, newer than this kit "
                f"{__version__}",
                "Upgrade kit.",
            )
        return run

    @contextmanager
    def leave_none_empty(self, begins: bool) -> Generator[None]:
        """Delete the run if its first command fails, in this block, before anything is learned.

        Args:
            begins: this is the command that created it.
        """
        try:
            yield
        except Exception:
            if begins:
                self._delete_if_empty()
            raise

    def _delete_if_empty(self) -> None:
        """Delete the run unless it has files of a training, or another process holds a lock."""
        walk = list(os.walk(self.path, followlinks=True))
        if {name for _, _, names in walk for name in names} <= _FIRST_FILES:
            # Checkpoints may be on another disk, to which there is a link.
            for link in self.path.glob("*/*/"):
                if link.is_symlink():
                    shutil.rmtree(link.resolve())
            # Renamed first, so that a kill leaves no run with some of its files.
            doomed = self.path.with_name(f".{self.name}.deleted")
            self.path.replace(doomed)
            shutil.rmtree(doomed)

    @property
    def has_begun(self) -> bool:
        """Whether the folder has what makes it a run."""
        return self.origin_path.is_file() and (self.recipe_path.is_file() or bool(self.baseline))

    @property
    def name(self) -> str:
        """The run's name: recipe and hash."""
        return self.path.resolve().name

    @property
    def recipe_path(self) -> Path:
        """The recipe in full; a baseline has none."""
        return self.path / RECIPE_FILE

    @property
    def origin_path(self) -> Path:
        """The record of what the run was made from (see `origin`)."""
        return self.path / ORIGIN_FILE

    @property
    def metrics_path(self) -> Path:
        """The summary that `summarise` writes."""
        return self.path / METRICS_FILE

    @property
    def oof_path(self) -> Path:
        """The out-of-fold predictions, once every fold is finished."""
        return self.path / "oof.csv"

    @property
    def ended(self) -> str:
        """How a sweep gave the run up, such as "pruned"; "" if none did."""
        path = self.path / ENDED_FILE
        return str(read_run_json(path).get("state", "")) if path.is_file() else ""

    def mark_ended(self, state: str, why: str) -> None:
        """Write down that a sweep gave the run up, so that `kit runs` can say it."""
        write_json(self.path / ENDED_FILE, {"state": state, "why": why})

    @property
    def teacher_path(self) -> Path:
        """The predictions that the run learned from beside the labels, if it has a teacher."""
        return self.path / TEACHER_FILE

    @property
    def teacher(self) -> pd.DataFrame:
        """The prediction frame that the run learns from beside the labels.

        Raises:
            RunError: the file is missing.
        """
        if not self.teacher_path.is_file():
            raise RunError(
                f"{self.path}: its recipe has a teacher, and {self.teacher_path.name} is missing",
                "Add --teacher with the runs or files that it was begun with.",
            )
        return read_predictions(self.teacher_path)

    def keep_teacher(self, predictions: pd.DataFrame) -> None:
        """Write the predictions to learn from, unless they are there."""
        if not self.teacher_path.is_file():
            write_predictions(predictions, self.teacher_path)

    @property
    def test_path(self) -> Path:
        """The predictions of the test rows, which `kit predict` writes."""
        return self.path / TEST_FILE

    def write_test(self, predictions: pd.DataFrame, models: Sequence[FoldDir]) -> None:
        """Write predictions of the test rows, and which folds' models they are the mean of."""
        write_predictions(predictions, self.test_path)

        # Written last, with the hash: after a crash in between, the file belongs to no record.
        content = {
            "folds": [fold.name for fold in models],
            TEST_FILE: file_sha256(self.test_path),
        }
        write_json(self.test_path.with_suffix(".json"), content)

    @property
    def outdated_test(self) -> str:
        """Why the test rows should be predicted again, "" where nothing is known against it."""
        record = self.test_path.with_suffix(".json")
        if not record.is_file() or not self.test_path.is_file():
            return ""
        content = read_run_json(record)
        if content.get(TEST_FILE) != file_sha256(self.test_path):
            return ""
        then = content.get("folds")
        now = [fold.name for fold in self.models()]
        if then == now or not isinstance(then, list):
            return ""
        return (
            f"{self.test_path} is of {', '.join(map(str, then))}, and now the models of "
            f"{', '.join(now)} predict"
        )

    @property
    def origin(self) -> dict[str, Any]:
        """What the run was made from.

        Always `data` (hash of the training rows), the options they were preprocessed with, and
        `kit` (its version). Since format 1 also `recipe` (hash of the content of recipe.toml) and,
        if the backbone is a folder, `backbone` (hash of its files).
        """
        return read_run_json(self.origin_path)

    def option(self, name: str, kind: type[T]) -> T:
        """Return one of the origin's values, which must be of type `kind`.

        Raises:
            RunError: it is missing or of another type, because origin.json was edited.
        """
        value: Any = self.origin.get(name)
        # Not `isinstance`, for which a bool is an int.
        if type(value) is not kind:
            raise RunError(f"{self.origin_path}: {name} is {str(value)[:40]!r}", RESTORE_HINT)
        return value

    @property
    def baseline(self) -> str | None:
        """The name of a baseline, whose models are classical; None for other runs."""
        return self.origin.get("baseline")

    @property
    def command(self) -> str:
        """The command that trains its folds, without --fold."""
        if self.baseline:
            embed = self.origin.get("embed")
            option = f" --embed {shlex.quote(str(embed))}" if embed else ""
            return f"kit baseline {self.baseline}{option}"
        return f"kit train --recipe {self.recipe_path}"

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was trained by.

        Raises:
            RunError: the run is a baseline; or recipe.toml was edited, or was written by a kit with
                other keys.
        """
        if self.baseline:
            raise RunError(f"{self.path} is a baseline, which has no recipe", "Leave it out.")
        text = read_text_file(self.recipe_path)
        digest = self.origin.get("recipe")
        if digest and _digest_of_toml(text) != digest:
            raise RunError(
                f"{self.recipe_path} was edited after the run began: its hash is not the one in "
                "origin.json",
                "Restore it. For another experiment, copy the file and train with --recipe COPY.",
            )
        try:
            return load_recipe(self.recipe_path)
        except RecipeError as error:
            made_by = self.origin.get("kit")
            if made_by == __version__:
                raise
            raise RunError(
                f"{self.recipe_path} was written by kit {made_by}, this is kit {__version__}: "
                f"{error.problem}",
                f"Use kit {made_by} for this run, or train it again.",
            ) from error

    def check_files(self, weights: bool = True) -> None:
        """Compare the files of all finished folds, and the out-of-fold predictions, with hashes.

        Args:
            weights: see `FoldDir.check_files`.

        Raises:
            RunError: a file is missing, incomplete or has changed.
        """
        for fold in self.finished():
            fold.check_files(weights)
        if self.metrics_path.is_file():
            check_listed_files(self.metrics_path, weights)

    def check_data(self, digest: str) -> None:
        """Raise RunError unless the run was trained on the rows with this hash."""
        if self.option("data", str) != digest:
            raise RunError(
                f"{self.path} was trained on different data than the data folder holds now",
                f"Prepare its rows again with `kit preprocess{self._data_options}`, or train into "
                "another --runs folder.",
            )

    @property
    def _data_options(self) -> str:
        """The options of `kit preprocess` that its rows were made with, as far as it knows them."""
        known = {name: self.origin.get(name) for name in DATA_OPTIONS}
        return "".join(f" --{name} {value}" for name, value in known.items() if value is not None)

    def fold(self, fold: int | str) -> FoldDir:
        """Return the folder of one fold, by its number or name, or of the holdout."""
        name = f"fold{fold}" if str(fold).isdecimal() else str(fold)
        return FoldDir(self.path / name)

    def finished(self) -> list[FoldDir]:
        """Return the finished folds: the holdout first, then the others by number."""
        folders = [path.parent for path in self.path.glob(f"*/{METRICS_FILE}")]
        folds = [folder for folder in folders if re.fullmatch(r"fold\d+", folder.name)]
        folds.sort(key=lambda folder: int(folder.name.removeprefix("fold")))
        holdout = [folder for folder in folders if folder.name == HOLDOUT]
        return [FoldDir(folder) for folder in holdout + folds]

    def models(self) -> list[FoldDir]:
        """Return the folds whose models predict new rows.

        These are all folds if all are finished; else the holdout alone if it is finished; else the
        folds that are finished.

        Raises:
            RunError: nothing is finished yet, or the run keeps no models.
        """
        finished = self.finished()
        if not finished:
            raise RunError(
                f"{self.path}: no fold of it has finished training",
                f"Continue with `{self._command_to_continue}`.",
            )

        # While some folds are missing, the report shows the holdout's model, so that one predicts.
        holdout = [fold for fold in finished if fold.name == HOLDOUT]
        folds = [fold for fold in finished if fold.name != HOLDOUT]
        if holdout and len(folds) < self.option("folds", int):
            folds = holdout

        if self.baseline and not all(fold.has_model for fold in finished):
            raise RunError(
                f"{self.path} was fitted by an older kit: it keeps predictions and no model",
                f"Delete it and run `{self.command} --fold all` again, or use its test.csv.",
            )
        return folds

    @property
    def _command_to_continue(self) -> str:
        """The command that goes on with the fold that was begun."""
        if self.baseline:
            return self.command
        begun = sorted(path.name for path in self.path.glob("fold*/"))
        fold = f" --fold {begun[0].removeprefix('fold')}" if begun else ""
        return f"{self.command}{fold} --resume"

    def summarise(self, write: bool = True) -> dict[str, Any]:
        """Return the metrics of the finished folds, and out-of-fold metrics if all are finished.

        Args:
            write: also write the summary to metrics.json and, if all folds are finished, their
                predictions to oof.csv. If several processes train together, only the first should.

        Returns:
            `run` (its folder) and `parts` (metrics by fold); if all folds are finished, also `oof`
            (log_loss, accuracy, rows).

        Raises:
            RunError: the folds' predictions do not belong together.
        """
        # Different processes may train different folds, and finish at the same time.
        with hold_lock(self.path, "metrics", wait=True) if write else nullcontext():
            metrics = {fold.name: fold.metrics for fold in self.finished()}
            summary: dict[str, Any] = {"run": str(self.path), "parts": metrics}

            folds = [self.fold(number) for number in range(self.option("folds", int))]
            if all(fold.name in metrics for fold in folds):
                oof = self._concatenate(folds)
                summary["oof"] = {
                    "log_loss": mean_over_rows(folds, "log_loss"),
                    "accuracy": mean_over_rows(folds, "accuracy"),
                    "rows": len(oof),
                }
                if write:
                    write_predictions(oof, self.oof_path)
                    summary["files"] = {self.oof_path.name: file_sha256(self.oof_path)}
            if write:
                write_json(self.metrics_path, summary)
        return summary

    @property
    def metrics(self) -> dict[str, Any]:
        """The summary of the finished folds (see `summarise`)."""
        return self.summarise(write=False)

    @property
    def oof(self) -> pd.DataFrame:
        """The out-of-fold prediction frame: each training row by a model that did not see it.

        Raises:
            RunError: not every fold is finished.
        """
        folds = [self.fold(number) for number in range(self.option("folds", int))]
        missing = [fold.name for fold in folds if not fold.is_finished]
        if missing:
            raise RunError(
                f"{self.path}: not finished: {', '.join(missing)}",
                f"Run `{self.command} --fold all`.",
            )
        return self._concatenate(folds)

    def _concatenate(self, folds: list[FoldDir]) -> pd.DataFrame:
        """Join the folds' validation predictions, checking that they are of different rows."""
        for fold in folds:
            fold.check_files(weights=False)
        frames = [fold.predictions for fold in folds]
        for fold, frame in zip(folds, frames, strict=True):
            if len(frame) != fold.metrics.get("valid_rows", len(frame)):
                raise RunError(
                    f"{fold.predictions_path} has {len(frame)} rows, but its metrics.json says "
                    f"{fold.metrics['valid_rows']}",
                    f"Delete {fold.path} and train that fold again.",
                )
        oof = pd.concat(frames, ignore_index=True)
        repeated = oof[ID][oof[ID].duplicated()]
        if len(repeated):
            raise RunError(
                f"{self.path}: id {repeated.iloc[0]} is in the validation rows of two folds: they "
                "are of different splits",
                "Delete the fold that does not belong there and train it again.",
            )
        return oof


def make_origin(dataset: Dataset, backbone: str | None = None) -> dict[str, Any]:
    """Return what a new run records: the hash and options of its rows, and the version of kit.

    Args:
        backbone: the hash of the backbone's folder; None for a backbone by name.
    """
    options = {name: dataset.manifest["options"][name] for name in DATA_OPTIONS}
    origin = {"data": dataset.digest("train"), "kit": __version__, **options}
    if backbone:
        origin["backbone"] = backbone
    return origin


def parse_folds(text: str, count: int) -> list[int | str]:
    """Return the folds that `--fold` asks for: "holdout", a number below `count`, or "all" of them.

    Raises:
        RecipeError: there is no such fold.
    """
    if text == HOLDOUT:
        return [HOLDOUT]
    if text == "all":
        return list(range(count))
    if text.isdecimal() and int(text) < count:
        return [int(text)]
    raise RecipeError(
        f"--fold {text!r}: these rows have folds 0 to {count - 1}",
        "Name one, or `all`, or `holdout`.",
    )


def where_runs_are(folder: Path) -> str:
    """Return a sentence with the runs in a folder, or with the command that lists or makes them."""
    names = sorted(origin.parent.name for origin in folder.glob(f"*/{ORIGIN_FILE}"))
    if not names:
        return "`kit train` creates one."
    if len(names) <= _FEW:
        return f"Runs in {folder}: {', '.join(names)}."
    option = "" if folder == RUNS else f" --runs {quote(str(folder))}"
    return f"`kit runs{option}` lists those in {folder}."


def _name_nearest_run(path: Path) -> str:
    """Return the hint for a path that is no run: those beside it, or in `RUNS`, that may be."""
    if (path.parent / ORIGIN_FILE).is_file():
        return f"Did you mean {path.parent}? It is the run that {path.name} is in."
    folder = path.parent if any(path.parent.glob(f"*/{ORIGIN_FILE}")) else RUNS
    runs = {origin.parent.name: origin.parent for origin in folder.glob(f"*/{ORIGIN_FILE}")}

    # A part of a name is enough for `kit runs show`, and may be typed here.
    meant = sorted(name for name in runs if path.name and path.name in name)
    if not 1 <= len(meant) <= _FEW:
        meant = find_nearest(path.name, runs)
    return propose((str(runs[name]) for name in meant), where_runs_are(folder))


def mean_over_rows(folds: list[FoldDir], name: str) -> float:
    """Return the mean of a metric over the rows of all folds, from each fold's mean and row count.

    Raises:
        RunError: the metrics of a fold lack a number.
    """
    rows = [fold.figure("valid_rows") for fold in folds]
    means = [fold.figure(name) for fold in folds]
    return sum(mean * count for mean, count in zip(means, rows, strict=True)) / sum(rows)


def _digest_of_toml(text: str) -> str:
    """Return a hash of the content of TOML; order of keys, comments and line ends do not count."""
    try:
        content = json.dumps(tomllib.loads(text), sort_keys=True, default=str)
    except ValueError:
        # Not TOML any more: the hash of the text itself shows that the file was edited.
        content = text
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
