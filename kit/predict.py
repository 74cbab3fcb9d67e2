"""Prediction frames from trained runs: of the test rows, of validation rows, or of any file."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from kit.data.dataset import open_dataset
from kit.data.feature_cache import FeatureTable, features_cached
from kit.data.preprocess import prepare_input
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached
from kit.errors import RunError
from kit.model.device import choose_device, prepare_device
from kit.model.inference import logits_to_probabilities, make_collator, predict_logits
from kit.model.pair_model import PairModel
from kit.predictions import make_predictions
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.task import HOLDOUT, ID

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Rows:
    """Rows to predict; what is made of them is kept in `cache` under their hash, `content`."""

    table: pa.Table
    content: str
    cache: Path

    def encoded(self, vocabulary: PairTokenizer, recipe: Recipe) -> TokenizedRows:
        return tokenize_cached(
            self.table, self.content, vocabulary, recipe.encode, self.cache, recipe.model.shape
        )

    def tabular(self, encoded: TokenizedRows) -> FeatureTable:
        return features_cached(self.table, self.content, encoded, self.cache)


def predict_split(
    run: str | Path,
    split: str,
    data: Path,
    *,
    swap: bool | None = None,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """The run's predictions on processed rows, a prediction frame.

    "test": every test row, averaged over all finished folds (or the holdout's model). "valid": the holdout's rows.
    "oof": every training row by the model that did not see it, so all folds must be finished.

    Raises:
        RunError: the parts that are needed are not finished, or the data are not those the run was trained on.
    """
    run, processed = Run.open(run), open_dataset(data)
    run.check_data(processed.digest("train"))
    if split == "test":
        test = _Rows(processed.test(), processed.digest("test"), processed.cache)
        each = _average(run, run.require_parts(), test, None, swap, progress)
        return make_predictions(test.table[ID].to_numpy(), each)
    folds: list[int | str] = [HOLDOUT] if split == "valid" else list(range(processed.folds))
    missing = [str(fold) for fold in folds if not run.done(fold)]
    if missing:
        raise RunError(
            f"{run.path}: --split {split} needs fold {', '.join(missing)}, which has not finished",
            f"Run `kit train --recipe {run.path / 'recipe.toml'} --fold {'all' if split == 'oof' else HOLDOUT}`.",
        )
    train, places, each = (
        _Rows(processed.train(), processed.digest("train"), processed.cache),
        [],
        [],
    )
    for fold in folds:
        rows = processed.fold_rows(fold)[1]
        each.append(_average(run, [run.part(fold)], train, rows, swap, progress))
        places.append(rows)
    order = np.argsort(np.concatenate(places))
    return make_predictions(
        train.table[ID].to_numpy()[np.concatenate(places)[order]], np.concatenate(each)[order]
    )


def predict_input(
    run: str | Path,
    file: Path,
    *,
    swap: bool | None = None,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """The run's predictions on any CSV with test.csv's columns, cleaned as the run's training rows were."""
    run = Run.open(run)
    parts = run.require_parts()
    table = prepare_input(file, run.noted("text", str))
    ranks = PartialState(cpu=not torch.cuda.is_available())
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        shared = broadcast_object_list([scratch])[
            0
        ]  # the first process encodes for all of this machine
        each = _average(run, parts, _Rows(table, "input", Path(shared)), None, swap, progress)
        ranks.wait_for_everyone()  # before the folder goes
    return make_predictions(table[ID].to_numpy(), each)


def _average(
    run: Run,
    parts: list[Path],
    source: _Rows,
    rows: np.ndarray | None,
    swap: bool | None,
    progress: Progress,
) -> np.ndarray:
    """The mean over models of the probabilities of `rows`, None for all, in their order: (N, 3) float64.

    Precision is what is best here, whatever the training machine had, unless the recipe insists on float32.
    """
    recipe = run.recipe
    precision = "fp32" if recipe.train.precision == "fp32" else "auto"
    swap = recipe.predict.swap if swap is None else swap
    ranks = PartialState(cpu=choose_device(precision).device.type == "cpu")
    total = 0.0
    for number, part in enumerate(parts):
        run.check_files(part)
        model, vocabulary = PairModel.from_pretrained(part)
        compute = choose_device(precision, model.bf16_width)
        prepare_device(compute)
        model.to(compute.device)
        with ranks.main_process_first():
            tokens = source.encoded(vocabulary, recipe)
            tabular = source.tabular(tokens) if model.feature_names else None
        rows = np.arange(len(tokens)) if rows is None else rows

        def report(done: int, each: int, before: int = number) -> None:
            progress(before * each + done, len(parts) * each)

        collate = make_collator(model, tokens, vocabulary, tabular=tabular)
        total = total + logits_to_probabilities(
            predict_logits(model, collate, rows, compute, both_orders=swap, progress=report)
        )
    return total / len(parts)
