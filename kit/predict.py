"""Predict probabilities with trained runs. Use `predict_split`, `predict_input` or `RunPredictor`.

A `RunPredictor` keeps its models loaded, for many calls; the functions load one model after the
other.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from accelerate.utils import broadcast_object_list

from kit.data.dataset import Dataset, open_dataset
from kit.data.feature_cache import FeatureTable, features_cached
from kit.data.preprocess import prepare_input
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached
from kit.errors import RunError
from kit.launcher import ignore_partial_launch
from kit.model.device import (
    AMX_WIDTH,
    Compute,
    base_dtype,
    choose_device,
    join_processes,
    prepare_device,
)
from kit.model.inference import (
    OrderBudget,
    logits_to_probabilities,
    make_collator,
    predict_logits,
)
from kit.model.pair_model import PairModel
from kit.predictions import make_predictions
from kit.recipe.spec import Recipe
from kit.run import FoldDir, Run
from kit.task import HOLDOUT, ID

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictionRows:
    """Rows to predict.

    Attributes:
        table: id, prompt and answers.
        digest: a hash of the table, which names its tokens and features in the cache.
        cache: the folder for tokens and features.
    """

    table: pa.Table
    digest: str
    cache: Path

    @classmethod
    def of_split(cls, dataset: Dataset, split: str) -> "PredictionRows":
        """Return the rows of "train" or "test"."""
        table = dataset.test() if split == "test" else dataset.train()
        return cls(table, dataset.digest(split), dataset.cache)

    def tokens(self, tokenizer: PairTokenizer, recipe: Recipe) -> TokenizedRows:
        """Return the rows as tokens, from the cache if it has them."""
        return tokenize_cached(
            self.table, self.digest, tokenizer, recipe.encode, self.cache, recipe.model.shape
        )

    def features(self, tokens: TokenizedRows) -> FeatureTable:
        """Return the rows' features, from the cache if it has them."""
        return features_cached(self.table, self.digest, tokens, self.cache)


class RunPredictor:
    """The models of a run, averaged.

    Args:
        folds: which models; by default those that `Run.models` chooses.
        swap: average over both orders of the answers; by default as the recipe says.
        keep: keep every model loaded after its first use. Otherwise one at a time is in memory.

    Raises:
        RunError: nothing is finished yet, or the run is a baseline.
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
        self.recipe = run.recipe
        self.folds = run.models() if folds is None else folds
        self.swap = self.recipe.predict.swap if swap is None else swap
        self.keep = keep
        self._loaded: dict[Path, tuple[PairModel, PairTokenizer, Compute]] = {}

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

        Under torchrun every process computes a share of the rows and returns all of them.

        Args:
            rows: numbers of the rows to predict, in the order wanted; by default all.
            progress: called with the rows done and all rows, over all models.
            deadline: time, as of `time.monotonic`, until which rows are read in the second order of
                their answers, the least decided first; for models that read a whole row at once.
            log: called with how far that came.
        """
        ranks = join_processes()
        total = np.zeros(())
        for number, fold in enumerate(self.folds):
            model, tokenizer, compute = self._load(fold)

            # The first process fills the cache; the others read it.
            with ranks.main_process_first():
                tokens = source.tokens(tokenizer, self.recipe)
                features = source.features(tokens) if model.feature_names else None
            if rows is None:
                rows = np.arange(len(tokens))

            def report(done: int, count: int, before: int = number) -> None:
                progress(before * count + done, len(self.folds) * count)

            # Each model gets an equal part of the time that is left.
            budget = None
            if math.isfinite(deadline):
                now = time.monotonic()
                budget = OrderBudget(now + (deadline - now) / (len(self.folds) - number))
            collator = make_collator(model, tokens, tokenizer, tabular=features)
            logits = predict_logits(
                model,
                collator,
                rows,
                compute,
                both_orders=self.swap,
                progress=report,
                budget=budget,
            )
            if budget and budget.both < budget.rows:
                log(
                    f"{fold.path}: time for both orders of the answers in {budget.both:,} of "
                    f"{budget.rows:,} rows, the least decided ones"
                )
            total = total + logits_to_probabilities(logits)
        return total / len(self.folds)

    def predict_table(
        self, table: pa.Table, progress: Progress = lambda done, total: None, **options: Any
    ) -> np.ndarray:
        """Return the probabilities of a table of id and texts, (N, 3) float64; cache nothing.

        Args:
            options: `deadline` and `log` of `predict`.
        """
        ranks = join_processes()
        with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
            # All processes of this machine use the folder of the first one, which waits with its
            # removal until the last is done.
            shared = broadcast_object_list([scratch])[0]
            source = PredictionRows(table, "input", Path(shared))
            probabilities = self.predict(source, progress=progress, **options)
            ranks.wait_for_everyone()
        return probabilities

    @property
    def _precision(self) -> str:
        """The precision: the best for this machine, unless the recipe asks for float32."""
        return "fp32" if self.recipe.train.precision == "fp32" else "auto"

    def _load(self, fold: FoldDir) -> tuple[PairModel, PairTokenizer, Compute]:
        if fold.path in self._loaded:
            return self._loaded[fold.path]

        fold.check_files()
        # The frozen base of a judge is loaded in the precision that will be computed in.
        half = base_dtype(choose_device(self._precision, AMX_WIDTH))
        model, tokenizer = PairModel.from_pretrained(fold.path, half)
        compute = choose_device(self._precision, model.bf16_width)
        prepare_device(compute)
        model.to(compute.device)

        loaded = (model, tokenizer, compute)
        if self.keep:
            self._loaded[fold.path] = loaded
        return loaded


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
    missing = [str(number) for number in numbers if not trained.fold(number).is_finished]
    if missing:
        asked = "all" if split == "oof" else HOLDOUT
        raise RunError(
            f"{trained.path}: --split {split} needs fold {', '.join(missing)}, which is not "
            "finished",
            f"Run `kit train --recipe {trained.recipe_path} --fold {asked}`.",
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
