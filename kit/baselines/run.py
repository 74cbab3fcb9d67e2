"""Baselines as runs: a reference model on the rows and folds that networks are trained on, kept as theirs are."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import kit
from kit.baselines.models import FITS, READS_NGRAMS, PairRows
from kit.baselines.tfidf import count_ngrams
from kit.data.dataset import Dataset, open_dataset
from kit.data.features import FEATURES, compute_features
from kit.errors import KitError, RunError
from kit.evaluation.metrics import accuracy, log_loss, swap_gap
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.run import Run, make_origin, parse_folds
from kit.storage.atomic import write_json
from kit.storage.lock import hold_lock
from kit.task import CLASSES, GROUP, HOLDOUT, ID, LABEL, RESPONSES, SWAP, TEST_FILE


def run_baseline(
    name: str,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Fits a baseline on everything but `fold` ("holdout", a number, or "all" of them) and writes its predictions.

    It learns what a network would: soft labels and weights count. It is judged by the labels alone.

    `runs/baseline-<name>` then holds what a trained run holds, less the model: each part's valid.csv and metrics.json,
    oof.csv once every fold is done. In place of the model stand its predictions of the test rows: each part's, and in
    the run's test.csv their mean over the folds, or the holdout's where no fold is done. Finished parts are left alone.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.

    Raises:
        KitError: no such baseline or fold, or `runs` has this baseline of other data, or parts of it that predict
            other test rows.
        HeldError: another process is fitting this baseline.
    """
    if name not in FITS:
        raise KitError(f"no baseline {name!r}", "Choose one of: " + ", ".join(FITS) + ".")
    processed = open_dataset(data)
    chosen = parse_folds(fold, processed.folds)
    run_dir = Run.create_baseline(runs, name, make_origin(processed))
    with hold_lock(run_dir.path):
        return _run(name, processed, run_dir, chosen, say)


def _run(
    name: str, processed: Dataset, run_dir: Run, chosen: list[int | str], say: Callable[[str], None]
) -> dict[str, Any]:
    missing = [each for each in chosen if not run_dir.done(each)]
    for each in chosen:
        if each not in missing:
            say(f"{run_dir.part(each)} is done already")
    if missing:
        started = time.monotonic()
        train, test = (
            baseline_rows(table, name in READS_NGRAMS)
            for table in (processed.train(), processed.test())
        )
        say(
            f"{len(train):,} training and {len(test):,} test rows read in {time.monotonic() - started:.0f} s"
        )
        for each in missing:
            metrics = _fit_part(name, processed, run_dir, each, train, test, started)
            started = time.monotonic()
            say(
                f"{run_dir.part(each)}: log loss {metrics['log_loss']:.4f}, accuracy {metrics['accuracy']:.3f}"
            )
    _test_predictions(name, run_dir, processed)
    return run_dir.summarise()


def baseline_rows(table: pa.Table, ngrams: bool) -> PairRows:
    """Processed rows as baselines see them; counting n-grams takes most of the time, so it can be left out."""
    a, b, pair = compute_features(table)
    column = FEATURES.index("characters")
    counts = (
        tuple(count_ngrams(pc.binary_join(table[c], "\n").to_pylist()) for c in RESPONSES)
        if ngrams
        else None
    )
    return PairRows(
        a, b, pair, np.stack([a[:, column], b[:, column]], axis=1), table[GROUP].to_numpy(), counts
    )


def _fit_part(
    name: str,
    data: Dataset,
    run_dir: Run,
    fold: int | str,
    train: PairRows,
    test: PairRows,
    started: float,
) -> dict[str, Any]:
    """Fits one part and writes it, metrics.json last; `started` is when its work began, reading rows included."""
    table = data.train([ID, LABEL])
    ids, labels = table[ID].to_numpy(), table[LABEL].to_numpy().astype(np.int64)
    train_rows, valid_rows = data.fold_rows(fold)
    targets = data.targets()
    targets = targets.astype(np.int64 if targets.ndim == 1 else np.float64)
    model = FITS[name](train.take(train_rows), targets[train_rows])
    held = train.take(valid_rows)
    valid = model.predict(held)
    part = run_dir.part(fold)
    write_predictions(make_predictions(ids[valid_rows], valid), part / "valid.csv")
    write_predictions(
        make_predictions(data.test([ID])[ID].to_numpy(), model.predict(test)), part / TEST_FILE
    )
    metrics = {
        "log_loss": log_loss(valid, labels[valid_rows]),
        "accuracy": accuracy(valid, labels[valid_rows]),
        "swap_gap": swap_gap(valid, model.predict(held.swapped)[:, SWAP]),
        "best_epoch": None,
        "train_rows": len(train_rows),
        "valid_rows": len(valid_rows),
        "parameters": model.parameters,
        "minutes": (time.monotonic() - started) / 60,
        "versions": {"kit": kit.__version__},
    }
    write_json(part / "metrics.json", metrics)
    return metrics


def _test_predictions(name: str, run_dir: Run, processed: Dataset) -> None:
    """The mean over finished folds, or the holdout's where no fold is done, in the run's test.csv.

    Raises:
        RunError: a part's are of other rows, as they are where test.csv has changed since.
    """
    finished = run_dir.parts()
    used = [part for part in finished if part != HOLDOUT] or list(finished)
    tests = {
        run_dir.path / part: read_predictions(run_dir.path / part / TEST_FILE).set_index(ID)
        for part in used
    }
    ids = processed.test([ID])[ID].to_numpy()
    others = [str(part) for part, test in tests.items() if set(test.index) != set(ids)]
    if others:
        raise RunError(
            f"{', '.join(others)}: predictions of other test rows than {processed.folder} has: test.csv has changed",
            f"Delete {'it' if len(others) == 1 else 'them'} and run `kit baseline {name} --fold "
            f"{HOLDOUT if used == [HOLDOUT] else 'all'}` again.",
        )
    mean = np.mean([test.loc[ids, list(CLASSES)].to_numpy() for test in tests.values()], axis=0)
    write_predictions(make_predictions(ids, mean), run_dir.path / TEST_FILE)
