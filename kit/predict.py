"""Prediction frames from trained runs: of the test rows, of validation rows, or of any file."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from kit import frame
from kit.data.encode import Encoded, Vocabulary, encode_cached
from kit.data.preprocess import prepare_input
from kit.data.processed import Processed, open_processed
from kit.errors import RunError
from kit.model.device import choose
from kit.model.inference import collator, predict_logits, probabilities
from kit.model.pair import PairModel
from kit.recipe import EncodeSpec
from kit.rundir import HOLDOUT, RunDir
from kit.schema import ID

Progress = Callable[[int, int], None]


def predict_split(
    run: str | Path, split: str, data: Path, *, swap: bool | None = None, progress: Progress = lambda done, total: None
) -> pd.DataFrame:
    """The run's predictions on processed rows, a prediction frame.

    "test": every test row, averaged over all finished folds (or the holdout's model). "valid": the holdout's rows.
    "oof": every training row by the model that did not see it, so all folds must be finished.

    Raises:
        RunError: the parts that are needed are not finished, or the data are not those the run was trained on.
    """
    run, processed = RunDir.open(run), open_processed(data)
    run.check_data(processed.digest("train"))
    if split == "test":
        table = processed.test()
        each = _average(run, run.require_parts(), _cached(processed, "test"), None, swap, progress)
        return frame.make(table[ID].to_numpy(), each)
    folds: list[int | str] = [HOLDOUT] if split == "valid" else list(range(processed.folds))
    missing = [str(fold) for fold in folds if not run.done(fold)]
    if missing:
        raise RunError(
            f"{run.path}: --split {split} needs fold {', '.join(missing)}, which has not finished",
            f"Run `kit train --recipe {run.path / 'recipe.toml'} --fold {'all' if split == 'oof' else HOLDOUT}`.",
        )
    table, places, each = processed.train(), [], []
    for fold in folds:
        rows = processed.fold_rows(fold)[1]
        each.append(_average(run, [run.part(fold)], _cached(processed, "train"), rows, swap, progress))
        places.append(rows)
    order = np.argsort(np.concatenate(places))
    return frame.make(table[ID].to_numpy()[np.concatenate(places)[order]], np.concatenate(each)[order])


def predict_input(
    run: str | Path, file: Path, *, swap: bool | None = None, progress: Progress = lambda done, total: None
) -> pd.DataFrame:
    """The run's predictions on any CSV with test.csv's columns, cleaned as the run's training rows were."""
    run = RunDir.open(run)
    parts = run.require_parts()
    table = prepare_input(file, run.origin["text"])
    ranks = PartialState(cpu=not torch.cuda.is_available())
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        shared = broadcast_object_list([scratch])[0]  # the first process encodes for all of this machine

        def encoded(vocabulary: Vocabulary, spec: EncodeSpec) -> Encoded:
            return encode_cached(table, "input", vocabulary, spec, Path(shared))

        each = _average(run, parts, encoded, None, swap, progress)
        ranks.wait_for_everyone()  # before the folder goes
    return frame.make(table[ID].to_numpy(), each)


def _cached(processed: Processed, split: str) -> Callable[..., Encoded]:
    table = processed.train() if split == "train" else processed.test()
    return lambda vocabulary, spec: encode_cached(table, processed.digest(split), vocabulary, spec, processed.cache)


def _average(
    run: RunDir,
    parts: list[Path],
    encoded: Callable[..., Encoded],
    rows: np.ndarray | None,
    swap: bool | None,
    progress: Progress,
) -> np.ndarray:
    """The mean over models of the probabilities of `rows`, None for all, in their order: (N, 3) float64.

    Precision is what is best here, whatever the training machine had, unless the recipe insists on float32.
    """
    recipe = run.recipe
    compute = choose("fp32" if recipe.train.precision == "fp32" else "auto")
    swap = recipe.predict.swap if swap is None else swap
    ranks = PartialState(cpu=compute.device.type == "cpu")
    total = 0.0
    for number, part in enumerate(parts):
        model, vocabulary = PairModel.from_pretrained(part)
        model.to(compute.device)
        with ranks.main_process_first():
            tokens = encoded(vocabulary, recipe.encode)
        rows = np.arange(len(tokens)) if rows is None else rows

        def report(done: int, each: int, before: int = number) -> None:
            progress(before * each + done, len(parts) * each)

        collate = collator(model, tokens, vocabulary)
        total = total + probabilities(predict_logits(model, collate, rows, compute, both_orders=swap, progress=report))
    return total / len(parts)
