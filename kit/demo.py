"""The whole pipeline on the embedded sample, step by step as a user would type it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kit.data.preprocess import preprocess_files
from kit.ensemble.pool import blend_predictions
from kit.errors import DataError, KitError
from kit.evaluation.validate import validate_submission
from kit.predict import predict_split
from kit.predictions import read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.report.export import write_report
from kit.report.report import Report, build_report
from kit.sample import generate
from kit.training.train import train_recipe

BACKBONES = ("tiny-deberta", "tiny-roberta", "tiny-electra")


def run(
    out: Path,
    rows: int,
    *,
    say: Callable[[str], None],
    training: Callable[[str], AbstractContextManager[Any]],
) -> Report:
    """Sample, preprocess, train three toy backbones, predict, blend, validate, compare; everything under `out`.

    What is there from an earlier demo of the same size is used again.

    Raises:
        KitError: `out` holds other files than those of such a demo.

    Args:
        out: folder for all files.
        rows: training rows of the sample.
        say: takes each step as the command that does it.
        training: makes the progress listener of one training, by its label.
    """
    raw, data, runs = out / "raw", out / "processed", out / "runs"
    say(f"$ kit sample --rows {rows} --out {raw}")
    _sample(raw, rows)
    say(f"$ kit preprocess --raw {raw} --out {data}")
    preprocess_files(raw, data)
    folders = []
    for backbone in BACKBONES:
        say(f"$ kit train --backbone {backbone} --data {data} --runs {runs}")
        recipe = load_recipe(backbone)
        with training(backbone) as listen:
            folders.append(
                Path(train_recipe(recipe, data, runs, resume=True, listen=listen)["run"])
            )
    for folder in folders:
        say(f"$ kit predict {folder} --data {data}")
        write_predictions(predict_split(folder, "test", data), folder / "test.csv")
    blends = []
    for split, name in (("valid", "holdout/valid.csv"), ("test", "test.csv")):
        files, target = [folder / name for folder in folders], out / f"ensemble-{split}.csv"
        say(f"$ kit ensemble {' '.join(map(str, files))} -o {target}")
        write_predictions(
            blend_predictions(
                [read_predictions(file) for file in files], [str(file) for file in files]
            ),
            target,
        )
        blends.append(("ensemble (mean)", target))
    say(f"$ kit validate {blends[-1][1]} --sample {raw / 'sample_submission.csv'}")
    valid = validate_submission(blends[-1][1], raw / "sample_submission.csv")
    if not valid.ok:
        raise DataError(
            f"{blends[-1][1]}: {valid.problems[0]}", "This is a bug in kit; please report it."
        )
    frames = " ".join(f"--frame '{name}={file}'" for name, file in blends)
    say(
        f"$ kit report {' '.join(map(str, folders))} --data {data} --truth {raw / 'truth.csv'} {frames} "
        f"-o {out / 'report.html'} -o {out / 'report.md'}"
    )
    compared = build_report(folders, data, frames=blends, truth=raw / "truth.csv")
    for name in ("report.html", "report.md"):
        write_report(compared, out / name)
    return compared


def _sample(raw: Path, rows: int) -> None:
    """Writes the sample unless it is there; never over another one, nor over a competition's files."""
    summary = raw / generate.SUMMARY_FILE
    if not summary.exists():
        generate.write_sample(raw, rows=rows)
    elif (there := json.loads(summary.read_text(encoding="utf-8"))["train"]["rows"]) != rows:
        raise KitError(
            f"{raw} holds a sample of {there} rows, not {rows}", "Add --out with another folder."
        )
