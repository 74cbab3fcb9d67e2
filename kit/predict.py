"""Predict probabilities with trained runs. Use `predict_split`, `predict_input` or `RunPredictor`.

A `RunPredictor` keeps its models loaded, for many calls; the functions load one model after the
other. `load_fold` is where the kinds of models meet: whatever it returns turns rows into
probabilities. Each kind imports what it needs when the first of its models is loaded: only networks
need torch.
"""

import math
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.dataset import open_dataset
from kit.data.prediction_rows import PredictionRows, Progress, TimeLimit
from kit.data.preprocess import prepare_input
from kit.errors import RunError
from kit.fold_dir import CLASSICAL, NETWORK, FoldDir
from kit.launcher import ignore_partial_launch, is_distributed
from kit.predictions import make_predictions
from kit.run import Run
from kit.task import HOLDOUT, ID


class TrainedFold(Protocol):
    """The model of one fold, loaded."""

    def predict(
        self,
        source: PredictionRows,
        rows: np.ndarray,
        progress: Progress,
        limit: TimeLimit | None = None,
    ) -> np.ndarray:
        """Return the probabilities of these rows of the source, (N, 3) float64."""
        ...


def load_fold(run: Run, fold: FoldDir, swap: bool | None = None) -> TrainedFold:
    """Load the model of a fold, after comparing its files with their hashes.

    Args:
        swap: whether a network averages over both orders of the answers; by default as the run's
            recipe says. A classical model gives the same answer in both orders.

    Raises:
        RunError: a file is missing or damaged, or the model is of a kind that this kit does not
            know.
    """
    fold.check_files()
    if fold.kind == CLASSICAL:
        from kit.baselines.saved import ClassicalFold

        return ClassicalFold.load(fold.path)
    if fold.kind == NETWORK:
        from kit.model.fold import NetworkFold

        return NetworkFold.load(fold.path, run.recipe, swap)
    raise RunError(f"{fold.path}: no model of kit: its kind is {fold.kind[:40]!r}", "Upgrade kit.")


class RunPredictor:
    """The models of a run, averaged.

    Args:
        folds: which models; by default those that `Run.models` chooses.
        swap: average over both orders of the answers; by default as the recipe says.
        keep: keep every model loaded after its first use. Otherwise one at a time is in memory.

    Raises:
        RunError: nothing is finished yet, or the run keeps no model.
    """

    def __init__(
        self,
        run: Run,
        folds: list[FoldDir] | None = None,
        *,
        swap: bool | None = None,
        keep: bool = False,
    ):
        ignore_partial_launch()
        self.run = run
        self.folds = run.models() if folds is None else folds
        self.swap = swap
        self.keep = keep
        self._loaded: dict[Path, TrainedFold] = {}

    def load(self) -> "RunPredictor":
        """Load every model now, and keep them."""
        self.keep = True
        for fold in self.folds:
            self._load(fold)
        return self

    def predict(
        self,
        source: PredictionRows,
        rows: np.ndarray | None = None,
        progress: Progress = lambda done, total: None,
        deadline: float = math.inf,
        log: Callable[[str], None] = lambda _: None,
    ) -> np.ndarray:
        """Return the mean of the models' probabilities, (N, 3) float64.

        Under torchrun every process returns all rows; networks divide the work.

        Args:
            rows: numbers of the rows to predict, in the order wanted; by default all.
            progress: called with the rows done and all rows, over all models.
            deadline: time, as of `time.monotonic`, until which rows are read in the second order of
                their answers, the least decided first; for models that read a whole row at once.
            log: called with how far that came.
        """
        chosen = np.arange(len(source)) if rows is None else rows
        total = np.zeros(())
        for number, fold in enumerate(self.folds):

            def report(done: int, count: int, before: int = number) -> None:
                progress(before * count + done, len(self.folds) * count)

            # Each model gets an equal part of the time that is left.
            limit = None
            if math.isfinite(deadline):
                now = time.monotonic()
                limit = TimeLimit(now + (deadline - now) / (len(self.folds) - number), log)
            total = total + self._load(fold).predict(source, chosen, report, limit)
        return total / len(self.folds)

    def predict_table(
        self, table: pa.Table, progress: Progress = lambda done, total: None, **options: Any
    ) -> np.ndarray:
        """Return the probabilities of a table of id and texts, (N, 3) float64; cache nothing.

        Args:
            options: `deadline` and `log` of `predict`.
        """
        with _shared_scratch() as scratch:
            source = PredictionRows(table, "input", scratch)
            return self.predict(source, progress=progress, **options)

    def _load(self, fold: FoldDir) -> TrainedFold:
        if fold.path in self._loaded:
            return self._loaded[fold.path]
        loaded = load_fold(self.run, fold, self.swap)
        if self.keep:
            self._loaded[fold.path] = loaded
        return loaded


@contextmanager
def _shared_scratch() -> Generator[Path]:
    """Yield a temporary folder; under torchrun the same one for all processes of this machine."""
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        if not is_distributed():
            yield Path(scratch)
            return

        from accelerate.utils import broadcast_object_list

        from kit.model.device import join_processes

        # The folder is the first process's, which waits with its removal until the last is done.
        ranks = join_processes()
        yield Path(broadcast_object_list([scratch])[0])
        ranks.wait_for_everyone()


def predict_split(
    run: str | Path,
    split: str,
    data: Path,
    *,
    swap: bool | None = None,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> pd.DataFrame:
    """Return a run's prediction frame of processed rows.

    Args:
        options: `deadline` and `log` of `RunPredictor.predict`.
        split: "test" for the test rows, averaged over the run's models; "valid" for the holdout's
            rows; "oof" for all training rows, each by the model that did not see it, which needs
            all folds.

    Raises:
        RunError: folds that are needed are not finished, or the run was trained on different data.
    """
    trained = Run.open(run)
    dataset = open_dataset(data)
    trained.check_data(dataset.digest("train"))
    if split == "test":
        source = PredictionRows.of_split(dataset, "test")
        predictor = RunPredictor(trained, swap=swap)
        probabilities = predictor.predict(source, progress=progress, **options)
        return make_predictions(source.table[ID].to_numpy(), probabilities)

    numbers: list[int | str] = [HOLDOUT] if split == "valid" else list(range(dataset.folds))
    missing = [trained.fold(number).name for number in numbers]
    missing = [name for name in missing if not trained.fold(name).is_finished]
    if missing:
        asked = "all" if split == "oof" else HOLDOUT
        raise RunError(
            f"{trained.path}: --split {split} needs {', '.join(missing)}, not finished yet",
            f"Run `{trained.command} --fold {asked}`.",
        )

    source = PredictionRows.of_split(dataset, "train")
    rows = [dataset.fold_rows(number)[1] for number in numbers]
    probabilities = [
        RunPredictor(trained, [trained.fold(number)], swap=swap).predict(
            source, valid, progress, **options
        )
        for number, valid in zip(numbers, rows, strict=True)
    ]

    # The rows are in the order of the folds: return them in the order of the data.
    all_rows = np.concatenate(rows)
    order = np.argsort(all_rows)
    ids = source.table[ID].to_numpy()
    return make_predictions(ids[all_rows[order]], np.concatenate(probabilities)[order])


def predict_input(
    run: str | Path,
    file: Path,
    *,
    swap: bool | None = None,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> pd.DataFrame:
    """Return a run's prediction frame of a CSV file with test.csv's columns.

    The rows are cleaned as the run's training rows were.

    Args:
        options: `deadline` and `log` of `RunPredictor.predict`.
    """
    trained = Run.open(run)
    predictor = RunPredictor(trained, swap=swap)
    table = prepare_input(file, trained.option("text", str))
    probabilities = predictor.predict_table(table, progress, **options)
    return make_predictions(table[ID].to_numpy(), probabilities)
