"""Run baselines on the rows and folds of the networks, and keep their predictions as a run.

Use `run_baseline`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import kit
from kit.baselines.models import FITS, NEEDS_NGRAMS, PairRows
from kit.baselines.tfidf import count_ngrams
from kit.data.dataset import Dataset, open_dataset
from kit.data.features import FEATURES, compute_features
from kit.errors import KitError, RunError
from kit.evaluation.metrics import accuracy, log_loss, swap_gap
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.run import Run, make_origin, parse_folds
from kit.storage.atomic import write_json
from kit.storage.lock import hold_lock
from kit.task import CLASSES, GROUP, HOLDOUT, ID, LABEL, RESPONSES, SWAP


def run_baseline(
    name: str,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Fit a baseline to everything except `fold` and write its predictions as a run.

    It learns from the same targets as a network, soft labels and weights included, and is scored by
    the labels alone. Finished folds are not fitted again.

    `runs/baseline-<name>` then has the files of a trained run, except the model: valid.csv and
    metrics.json of each fold, and oof.csv once every fold is done. In place of a model each fold
    has predictions of the test rows. The run's test.csv is their mean over the folds, or the
    holdout's if no fold is done.

    Args:
        name: one of `BASELINES`.
        data: the processed folder.
        runs: the folder of all runs.
        fold: "holdout", a number, or "all" of them.
        say: called with a line for each fold.
        progress: called with what is done next, the steps done and all steps.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.

    Raises:
        KitError: no such baseline or fold; or `runs` has this baseline for other data or for other
            test rows.
        HeldError: another process is fitting this baseline.
    """
    if name not in FITS:
        raise KitError(f"no baseline {name!r}", "Choose one of: " + ", ".join(FITS) + ".")
    processed = open_dataset(data)
    folds = parse_folds(fold, processed.folds)
    run = Run.create_baseline(runs, name, make_origin(processed))
    with hold_lock(run.path):
        _fit_missing_folds(name, processed, run, folds, say, progress)
        _write_test_predictions(name, run, processed)
        return run.summarise()


def _fit_missing_folds(
    name: str,
    processed: Dataset,
    run: Run,
    folds: list[int | str],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> None:
    missing = []
    for fold in folds:
        folder = run.fold(fold)
        if folder.is_finished:
            folder.check_files()
            say(f"{folder.path} is already finished")
        else:
            missing.append(fold)
    if not missing:
        return

    # The training and the test rows are read, and each fold is fitted.
    stages = 2 + len(missing)
    started = time.monotonic()
    progress("reading training rows", 0, stages)
    train = baseline_rows(processed.train(), name in NEEDS_NGRAMS)
    progress("reading test rows", 1, stages)
    test = baseline_rows(processed.test(), name in NEEDS_NGRAMS)
    seconds = time.monotonic() - started
    say(f"{len(train):,} training and {len(test):,} test rows read in {seconds:.0f} s")

    # The time of the first fold includes reading the rows.
    for done, fold in enumerate(missing, start=2):
        progress(f"fitting {run.fold(fold).name}", done, stages)
        metrics = _fit_fold(name, processed, run, fold, train, test, started)
        started = time.monotonic()
        say(
            f"{run.fold(fold).path}: log loss {metrics['log_loss']:.4f}, "
            f"accuracy {metrics['accuracy']:.3f}"
        )


def baseline_rows(table: pa.Table, ngrams: bool) -> PairRows:
    """Return processed rows as baselines see them; counting `ngrams` takes most of the time."""
    a, b, pair = compute_features(table)
    length = FEATURES.index("characters")
    counts = ((), ())
    if ngrams:
        # pyarrow makes its compute functions at import, where a type checker cannot see them.
        join = pc.binary_join  # ty: ignore[missing-attribute]
        texts_a, texts_b = (join(table[name], "\n").to_pylist() for name in RESPONSES)
        counts = (count_ngrams(texts_a), count_ngrams(texts_b))
    lengths = np.stack([a[:, length], b[:, length]], axis=1)
    return PairRows(a, b, pair, lengths, table[GROUP].to_numpy(), counts)


def _fit_fold(
    name: str,
    processed: Dataset,
    run: Run,
    fold: int | str,
    train: PairRows,
    test: PairRows,
    started: float,
) -> dict[str, Any]:
    """Fit and write one fold, metrics.json last since it marks the fold as finished."""
    table = processed.train([ID, LABEL])
    ids = table[ID].to_numpy()
    labels = table[LABEL].to_numpy().astype(np.int64)
    targets = processed.targets()
    targets = targets.astype(np.int64 if targets.ndim == 1 else np.float64)

    train_rows, validation_rows = processed.fold_rows(fold)
    model = FITS[name](train.take(train_rows), targets[train_rows])
    validation = train.take(validation_rows)
    predictions = model.predict(validation)

    folder = run.fold(fold)
    validation_ids = ids[validation_rows]
    write_predictions(make_predictions(validation_ids, predictions), folder.predictions_path)
    test_ids = processed.test([ID])[ID].to_numpy()
    write_predictions(make_predictions(test_ids, model.predict(test)), folder.test_path)
    metrics = {
        "log_loss": log_loss(predictions, labels[validation_rows]),
        "accuracy": accuracy(predictions, labels[validation_rows]),
        "swap_gap": swap_gap(predictions, model.predict(validation.swapped)[:, SWAP]),
        "best_epoch": None,
        "train_rows": len(train_rows),
        "valid_rows": len(validation_rows),
        "parameters": model.parameters,
        "minutes": (time.monotonic() - started) / 60,
        "versions": {"kit": kit.__version__},
    }
    write_json(folder.metrics_path, metrics | {"files": folder.file_digests()})
    return metrics


def _write_test_predictions(name: str, run: Run, processed: Dataset) -> None:
    """Write the run's test.csv: the mean over finished folds, or the holdout's if there are none.

    Raises:
        RunError: a fold predicts other test rows, because test.csv has changed since it was fitted.
    """
    finished = run.finished()
    folds = [fold for fold in finished if fold.name != HOLDOUT] or finished
    predictions = {fold.path: read_predictions(fold.test_path).set_index(ID) for fold in folds}

    ids = processed.test([ID])[ID].to_numpy()
    outdated = [str(part) for part, frame in predictions.items() if set(frame.index) != set(ids)]
    if outdated:
        it = "it" if len(outdated) == 1 else "them"
        fold = HOLDOUT if folds[0].name == HOLDOUT else "all"
        raise RunError(
            f"{', '.join(outdated)}: predictions of other test rows than in {processed.folder}: "
            "test.csv has changed",
            f"Delete {it} and run `kit baseline {name} --fold {fold}` again.",
        )
    values = [frame.loc[ids, list(CLASSES)].to_numpy() for frame in predictions.values()]
    write_predictions(make_predictions(ids, np.mean(values, axis=0)), run.test_path)
