"""Commands that make predictions from rows or from other predictions without torch: baseline, calibrate, ensemble."""

from pathlib import Path

import click

from kit.baselines import BASELINES
from kit.cli import options, show


@click.command()
@click.argument("name", type=click.Choice(BASELINES), default="tfidf")
@click.option(
    "--fold", default="holdout", show_default=True, help="A fold's number, `all`, or `holdout`."
)
@options.data
@options.runs
@options.as_json
def baseline(name: str, fold: str, data: Path, runs: Path, as_json: bool) -> None:
    """Fit a reference model on the very same rows, with their soft labels and weights where they have some.

    \b
    Example:  kit baseline tfidf --fold all
    """
    from kit.baselines.run import run_baseline

    result = run_baseline(name, data, runs, fold, say=show.note)
    show.json_out(result) if as_json else show.trained(result)


@click.command()
@click.argument("file", type=options.FILE)
@click.option(
    "--truth",
    type=options.FILE,
    help="Labels of the rows: a CSV like train.csv, or processed train.parquet.",
)
@click.option(
    "--subset", is_flag=True, help="Fit on the rows that FILE predicts, such as validation rows."
)
@click.option(
    "--method",
    type=click.Choice(["temperature", "bias"]),
    help="What to fit.  [default: the better one]",
)
@click.option("--save", type=options.FILE, help="Write the calibration as JSON, for --apply.")
@click.option(
    "--apply", "saved", type=options.FILE, help="Apply a saved calibration instead of fitting one."
)
@click.option(
    "-o",
    "--out",
    type=options.FILE,
    help="Write the calibrated predictions; of fitted rows, cross-fitted.",
)
@options.force
@options.as_json
def calibrate(
    file: Path,
    truth: Path | None,
    subset: bool,
    method: str | None,
    save: Path | None,
    saved: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Soften or sharpen probabilities, by what out-of-fold predictions say.

    \b
    Example:  kit calibrate runs/deberta-1a2b3c4d/oof.csv --truth data/processed/train.parquet --save t.json
              kit calibrate runs/deberta-1a2b3c4d/test.csv --apply t.json -o calibrated.csv
    """
    if saved:
        why = "it applies what was fitted before."
        options.refuse_beside("--apply", why, truth=truth, subset=subset, method=method, save=save)
    if bool(saved) == bool(truth) or (saved and not out):
        raise click.UsageError("Give --truth FILE to fit, or --apply SAVED -o FILE to apply.")
    options.refuse_one_file("--save", save, "-o", out)
    from kit.ensemble.calibration import apply_calibration, read_calibration, write_calibration
    from kit.ensemble.fit_calibration import fit_calibration as fit
    from kit.ensemble.members import unknown_run_warnings
    from kit.evaluation.truth import prompt_group_warnings, read_truth, restrict_truth
    from kit.predictions import make_predictions, read_predictions, write_predictions

    options.refuse_overwrites((save, out), force)
    predictions = read_predictions(file)
    if saved:
        write_predictions(apply_calibration(read_calibration(saved), predictions), out)
        return (
            show.json_out({"file": str(out)})
            if as_json
            else show.note(f"{len(predictions):,} rows in {out}")
        )
    labels = read_truth(truth)
    labels = restrict_truth(labels, predictions) if subset else labels
    result = fit(predictions, labels, str(file), method)
    calibrated = make_predictions(labels["id"].to_numpy(), result.cross_fitted_probabilities)
    if save:
        write_calibration(result.calibration, save, result.fitted)
    if out:
        write_predictions(calibrated, out)
    show.json_out(result.as_dict()) if as_json else show.calibrated(result)
    for line in [*unknown_run_warnings([file]), *prompt_group_warnings(labels, truth)]:
        show.note(line)


@click.command()
@click.argument("files", nargs=-1, type=options.FILE)
@click.option(
    "--method",
    type=click.Choice(["mean", "geometric", "weights", "fit"]),
    help="How to combine.  [default: mean; weights or fit where they are given]",
)
@click.option(
    "--weights",
    type=options.NUMBERS,
    help="One number for each file, such as 2,1,1; only their ratios count.",
)
@click.option(
    "--fit",
    "oof",
    type=options.FILE,
    multiple=True,
    help="Out-of-fold predictions to fit weights to; repeats.",
)
@click.option("--truth", type=options.FILE, help="Labels of the out-of-fold rows.")
@click.option(
    "--subset",
    is_flag=True,
    help="Fit on the rows that the --fit files predict, such as validation rows.",
)
@click.option("--save", type=options.FILE, help="Write the fitted blend as JSON, for --apply.")
@click.option(
    "--apply",
    "saved",
    type=options.FILE,
    help="Blend as a saved blend says; members are found by run.",
)
@click.option("-o", "--out", type=options.FILE, help="The blended predictions of FILES.")
@options.force
@options.as_json
def ensemble(
    files: tuple[Path, ...],
    method: str | None,
    weights: list[float] | None,
    oof: tuple[Path, ...],
    truth: Path | None,
    subset: bool,
    save: Path | None,
    saved: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Blend prediction files of the same rows into one.

    \b
    Example:  kit ensemble deberta.csv roberta.csv --weights 2,1 -o submissions/blend.csv
              kit ensemble runs/*/test.csv --fit runs/a/oof.csv --fit runs/b/oof.csv \\
                  --truth data/processed/train.parquet -o submissions/blend.csv
    """
    _check_usage(files, method, weights, oof, truth, subset, save, saved, out)
    options.refuse_one_file("--save", save, "-o", out)
    from kit.ensemble.blend import apply_blend, read_blend, write_blend
    from kit.ensemble.members import read_members, unknown_run_warnings
    from kit.ensemble.pool import blend_predictions
    from kit.predictions import read_predictions, write_predictions

    options.refuse_overwrites((save, out), force)
    fitted = blended = None
    if (
        oof or saved
    ):  # all is read and worked out before anything is written: an error leaves no half of the results
        names, frames = read_members(files)
        fitted = _fit(oof, truth, subset) if oof else None
        if out:
            blended = apply_blend(
                fitted.blend if fitted else read_blend(saved), frames, names, files
            )
    else:
        method = method or ("weights" if weights else "mean")
        blended = blend_predictions(
            [read_predictions(file) for file in files],
            [str(file) for file in files],
            method,
            weights,
        )
    if save:
        write_blend(fitted.blend, save, fitted.fitted)
    if out:
        write_predictions(blended, out)
    for line in unknown_run_warnings(oof):
        show.note(line)
    result = {"file": str(out) if out else None, "members": [str(file) for file in files]}
    if as_json:
        return show.json_out(result | ({"fit": fitted.as_dict()} if fitted else {"method": method}))
    if fitted:
        show.fitted(fitted)
    if out:
        show.note(f"{len(files)} files blended into {out}")


def _check_usage(
    files: tuple[Path, ...],
    method: str | None,
    weights: list[float] | None,
    oof: tuple[Path, ...],
    truth: Path | None,
    subset: bool,
    save: Path | None,
    saved: Path | None,
    out: Path | None,
) -> None:
    other = None if method == "fit" else method
    if saved:
        why = "it blends as was fitted before."
        options.refuse_beside("--apply", why, fit=oof, truth=truth, subset=subset, save=save)
        options.refuse_beside("--apply", why, weights=weights, method=method)
    elif oof:
        options.refuse_beside("--fit", "it finds its own weights.", weights=weights, method=other)
    else:
        why = "these are for a blend that --fit FILE fits, for every member."
        options.refuse_beside("A blend without --fit", why, truth=truth, subset=subset, save=save)
    if bool(oof) != bool(truth) or (method == "fit") > bool(oof):
        raise click.UsageError("Fitting takes --fit FILE for every member, and --truth FILE.")
    if method not in (None, "weights"):
        options.refuse_beside(
            f"--method {method}", "they are of --method weights.", weights=weights
        )
    if bool(files) != bool(out) or not (files or oof):
        raise click.UsageError("Name prediction files and -o FILE.")


def _fit(oof: tuple[Path, ...], truth: Path, subset: bool):
    from kit.ensemble.fit_blend import fit_blend
    from kit.ensemble.members import read_members
    from kit.evaluation.truth import prompt_group_warnings, read_truth, restrict_truth

    names, frames = read_members(oof)
    labels = read_truth(truth)
    for line in prompt_group_warnings(labels, truth):
        show.note(line)
    return fit_blend(
        frames, names, restrict_truth(labels, frames[0]) if subset else labels, files=oof
    )


COMMANDS = (calibrate, ensemble)
