"""Run the whole pipeline on the embedded sample, as a user would type it. Use `run_demo`."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from kit.data.preprocess import preprocess_files
from kit.ensembling.pool import blend_predictions
from kit.errors import DataError, KitError
from kit.evaluation.validate import validate_submission
from kit.predict import predict_split
from kit.predictions import read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.reporting.export import write_report
from kit.reporting.report import Report, build_report
from kit.run import Run
from kit.sample.generate import SUMMARY_FILE, write_sample
from kit.storage.atomic import read_text_file
from kit.task import HOLDOUT
from kit.training.callbacks import TrainingProgress
from kit.training.train import train_recipe

BACKBONES = ("tiny-deberta", "tiny-roberta", "tiny-electra")


def run_demo(
    out: Path,
    rows: int,
    *,
    log: Callable[[str], None],
    training: Callable[[str], AbstractContextManager[Callable[[TrainingProgress], None]]],
) -> Report:
    """Sample, preprocess, train three toy backbones, predict, blend, validate and compare.

    Results of an earlier demo of the same size in `out` are used again.

    Args:
        out: folder for all files.
        rows: training rows of the sample.
        log: called with each step, as the command that does the same.
        training: returns, for the label of a training, a context manager that yields the callback
            for its progress.

    Raises:
        KitError: `out` has files that are not from such a demo.
    """
    raw = out / "raw"
    data = out / "processed"
    runs = out / "runs"

    log(f"$ kit sample --rows {rows} --out {raw}")
    _make_sample(raw, rows)

    log(f"$ kit preprocess --raw {raw} --out {data}")
    preprocess_files(raw, data)

    folders = []
    for backbone in BACKBONES:
        log(f"$ kit train --backbone {backbone} --data {data} --runs {runs}")
        with training(backbone) as listener:
            summary = train_recipe(load_recipe(backbone), data, runs, resume=True, listen=listener)
        folders.append(Path(summary["run"]))

    for folder in folders:
        log(f"$ kit predict {folder} --data {data}")
        run = Run(folder)
        run.write_test(predict_split(folder, "test", data), run.models())

    valid_blend = out / "ensemble-valid.csv"
    test_blend = out / "ensemble-test.csv"
    _blend([Run(folder).fold(HOLDOUT).predictions_path for folder in folders], valid_blend, log)
    _blend([folder / "test.csv" for folder in folders], test_blend, log)

    sample_submission = raw / "sample_submission.csv"
    log(f"$ kit validate {test_blend} --sample {sample_submission}")
    validation = validate_submission(test_blend, sample_submission)
    if not validation.ok:
        raise DataError(
            f"{test_blend}: {validation.problems[0]}", "This is a bug in kit; please report it."
        )

    truth = raw / "truth.csv"
    blends = [("ensemble (mean)", valid_blend), ("ensemble (mean)", test_blend)]
    log(
        f"$ kit report {' '.join(map(str, folders))} --data {data} --truth {truth} "
        + " ".join(f"--frame '{name}={file}'" for name, file in blends)
        + f" -o {out / 'report.html'} -o {out / 'report.md'}"
    )
    report = build_report(folders, data, frames=blends, truth=truth)
    for name in ("report.html", "report.md"):
        write_report(report, out / name)
    return report


def _make_sample(raw: Path, rows: int) -> None:
    """Write the sample unless it exists; raise KitError if there is one of another size.

    Without a summary there is no sample, and `write_sample` refuses to overwrite other files.
    """
    summary = raw / SUMMARY_FILE
    if not summary.exists():
        write_sample(raw, rows=rows)
        return

    try:
        existing = json.loads(read_text_file(summary))["train"]["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(
            f"{summary} is damaged, so the files next to it may be others than the sample's",
            f"Delete {raw}, or add --out with another folder.",
        ) from error
    if existing != rows:
        raise KitError(
            f"{raw} holds a sample of {existing} rows, not {rows}", "Add --out with another folder."
        )


def _blend(files: list[Path], target: Path, log: Callable[[str], None]) -> None:
    """Write the mean of the prediction files."""
    names = [str(file) for file in files]
    log(f"$ kit ensemble {' '.join(names)} -o {target}")
    write_predictions(blend_predictions([read_predictions(file) for file in files], names), target)
