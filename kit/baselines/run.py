"""Fit baselines on the rows and folds of the networks, and keep their models as a run.

Use `run_baseline`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kit
from kit.baselines.models import MODELS, baseline_run_name, check_baseline
from kit.baselines.rows import PairRows
from kit.baselines.saved import ClassicalFold, read_pairs, save_classical
from kit.data.dataset import Dataset, open_dataset
from kit.data.prediction_rows import PredictionRows
from kit.evaluation.metrics import accuracy, log_loss, swap_gap
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.run import Run, make_origin, parse_folds
from kit.storage.atomic import write_json
from kit.storage.lock import hold_lock
from kit.task import HOLDOUT, ID, LABEL, SWAP

if TYPE_CHECKING:
    from kit.baselines.similarity import Embedder


def run_baseline(
    name: str,
    data: Path,
    runs: Path,
    fold: str = HOLDOUT,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    embed: str | None = None,
) -> dict[str, Any]:
    """Fit a baseline to everything except `fold` and write it as a run.

    It learns from the same targets as a network, soft labels and weights included, and is scored by
    the labels alone. Finished folds are not fitted again.

    `runs/baseline-<name>-<hash>` then has the files of a trained run: model, valid.csv and
    metrics.json of each fold, oof.csv once every fold is done, and test.csv, as `kit predict`
    writes it.

    Args:
        name: one of `BASELINES`.
        data: the processed folder.
        runs: the folder of all runs.
        fold: "holdout", a number, or "all" of them.
        say: called with a line for each fold.
        progress: called with what is done next, the steps done and all steps.
        embed: an encoder whose similarities of prompt and answers join the features: a registry
            name, a folder or a hub id.

    Returns:
        The run's metrics: `run` (its folder) and `parts`, and once every fold is done `oof`.

    Raises:
        KitError: no such baseline, fold or encoder; or `runs` has this baseline for other data or
            fitted by an older kit, which kept no models.
        HeldError: another process is fitting this baseline.
    """
    # Refused before torch is imported and an encoder fetched, which takes seconds or more.
    check_baseline(name, embeds=embed is not None)
    processed = open_dataset(data)
    folds = parse_folds(fold, processed.folds)

    embedder = None
    if embed is not None:
        from kit.baselines.similarity import Embedder

        embedder = Embedder.of_backbone(embed)
        # Named so that it is found from any working directory.
        embed = str(Path(embed).absolute()) if Path(embed).is_dir() else embed

    run_name = baseline_run_name(name, embedder.reference.digest if embedder else "")
    begins = not (runs / run_name).exists()
    run = Run.create_baseline(runs / run_name, name, make_origin(processed), embed or "")
    with run.leave_none_empty(begins), hold_lock(run.path):
        # Folds of an older kit are of another model, so that new ones would not go with them.
        if run.finished():
            run.models()
        fitted = _fit_missing_folds(name, processed, run, folds, embedder, say, progress)
        if fitted or not _predicts_rows(run.test_path, processed):
            _write_test_predictions(run, processed, say)
        return run.summarise()


def _fit_missing_folds(
    name: str,
    processed: Dataset,
    run: Run,
    folds: list[int | str],
    embedder: "Embedder | None",
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> bool:
    """Fit the folds that are not finished yet; return whether there were any."""
    missing = []
    for fold in folds:
        folder = run.fold(fold)
        if folder.is_finished:
            folder.check_files()
            say(f"{folder.path} is already finished")
        else:
            missing.append(fold)
    if not missing:
        return False

    # The training rows are read, and each fold is fitted.
    stages = 1 + len(missing)
    started = time.monotonic()
    progress("reading training rows", 0, stages)
    source = PredictionRows.of_split(processed, "train")
    train = read_pairs(source, MODELS[name].reads_ngrams, embedder, say)
    seconds = time.monotonic() - started
    say(f"{len(train):,} training rows read in {seconds:.0f} s")

    # The time of the first fold includes reading the rows.
    for done, fold in enumerate(missing, start=1):
        progress(f"fitting {run.fold(fold).name}", done, stages)
        metrics = _fit_fold(name, processed, run, fold, train, embedder, started)
        started = time.monotonic()
        say(
            f"{run.fold(fold).path}: log loss {metrics['log_loss']:.4f}, "
            f"accuracy {metrics['accuracy']:.3f}"
        )
    return True


def _fit_fold(
    name: str,
    processed: Dataset,
    run: Run,
    fold: int | str,
    train: PairRows,
    embedder: "Embedder | None",
    started: float,
) -> dict[str, Any]:
    """Fit and write one fold, metrics.json last since it marks the fold as finished."""
    table = processed.train([ID, LABEL])
    ids = table[ID].to_numpy()
    labels = table[LABEL].to_numpy().astype(np.int64)
    targets = processed.targets()
    targets = targets.astype(np.int64 if targets.ndim == 1 else np.float64)

    train_rows, validation_rows = processed.fold_rows(fold)
    model = MODELS[name].fit(train.take(train_rows), targets[train_rows])
    validation = train.take(validation_rows)
    predictions = model.predict(validation)

    folder = run.fold(fold)
    save_classical(model, name, folder.path, embedder)
    validation_ids = ids[validation_rows]
    write_predictions(make_predictions(validation_ids, predictions), folder.predictions_path)
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


def _predicts_rows(file: Path, processed: Dataset) -> bool:
    """Return whether a prediction file is there and has the test rows, which may have changed."""
    if not file.is_file():
        return False
    return read_predictions(file)[ID].tolist() == processed.test([ID])[ID].to_pylist()


def _write_test_predictions(run: Run, processed: Dataset, say: Callable[[str], None]) -> None:
    """Write the run's test.csv: the mean over the models that predict new rows."""
    source = PredictionRows.of_split(processed, "test")
    rows = np.arange(len(source))
    models = run.models()
    total = np.zeros(())
    for fold in models:
        loaded = ClassicalFold.load(fold.path)
        loaded.read(source, say)
        total = total + loaded.predict(source, rows, lambda *_: None)
    predictions = make_predictions(source.table[ID].to_numpy(), total / len(models))
    run.write_test(predictions, models)
