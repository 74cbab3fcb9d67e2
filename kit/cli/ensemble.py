"""Define the commands that change or blend predictions, without torch: calibrate, ensemble."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from kit.cli import options, output
from kit.wording import counted

if TYPE_CHECKING:
    from kit.ensembling.fit_calibration import CalibrationMethod


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
    help="Write the calibrated predictions; of rows that were fitted, cross-fitted ones.",
)
@options.force
@options.as_json
def calibrate_command(
    file: Path,
    truth: Path | None,
    subset: bool,
    method: "CalibrationMethod | None",
    save: Path | None,
    saved: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Soften or sharpen probabilities, by a fit to out-of-fold predictions.

    \b
    Example:  kit calibrate runs/deberta-1a2b3c4d/oof.csv \\
                  --truth data/processed/train.parquet --save t.json
              kit calibrate deberta.csv --apply t.json -o calibrated.csv
    """
    if saved:
        why = "it applies what was fitted before."
        options.refuse_combination(
            "--apply", why, truth=truth, subset=subset, method=method, save=save
        )
        if out:
            return _apply_saved(saved, file, out, force, as_json)
    if saved or not truth:
        raise click.UsageError("Give --truth FILE to fit, or --apply SAVED -o FILE to apply.")
    options.refuse_one_file("--save", save, "-o", out)

    import kit
    from kit.predictions import write_predictions

    options.refuse_overwrites((save, out), force)
    result = kit.calibrate(file, truth, method=method, subset=subset)
    if save:
        result.save(save)
    if out:
        write_predictions(result.cross_fitted, out)

    for line in result.warnings:
        output.print_note(line)
    if as_json:
        return output.print_json(result.as_dict())
    output.print_calibration(result)


def _apply_saved(saved: Path, file: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write the predictions in `file`, calibrated as was fitted before."""
    from kit.ensembling.calibration import apply_calibration, read_calibration
    from kit.predictions import read_predictions, write_predictions

    options.refuse_overwrites((out,), force)
    predictions = read_predictions(file)
    write_predictions(apply_calibration(read_calibration(saved), predictions), out)
    if as_json:
        return output.print_json({"file": str(out)})
    output.print_note(f"{counted(len(predictions), 'row')} in {out}")


@click.command()
@click.argument("files", nargs=-1, type=options.FILE)
@click.option(
    "--method",
    type=click.Choice(["mean", "geometric", "weights", "fit"]),
    help="How to combine.  [default: mean; weights or fit if they are given]",
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
    help="Out-of-fold predictions to fit weights to; may repeat.",
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
def ensemble_command(
    files: tuple[Path, ...],
    method: Literal["mean", "geometric", "weights", "fit"] | None,
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
    Example:  kit ensemble deberta.csv roberta.csv --weights 2,1 -o blend.csv
              kit ensemble runs/*/test.csv --fit runs/a/oof.csv \\
                  --fit runs/b/oof.csv --truth data/processed/train.parquet \\
                  -o submissions/blend.csv
    """
    _check_usage(files, method, weights, oof, truth, subset, save, saved, out)
    options.refuse_one_file("--save", save, "-o", out)

    import kit
    from kit.ensembling.members import baseline_members, outdated_members
    from kit.predictions import write_predictions

    # Everything is read and computed before anything is written, so that an error cannot leave one
    # of two files.
    options.refuse_overwrites((save, out), force)
    result = kit.ensemble(
        files,
        method=None if method == "fit" else method,
        weights=weights,
        fit=oof,
        truth=truth,
        subset=subset,
        blend=saved,
    )
    if save:
        result.save(save)
    if out and result.predictions is not None:
        write_predictions(result.predictions, out)

    for line in result.notes:
        output.print_note(line)
    for outdated in outdated_members(files):
        output.print_note(f"Warning: {outdated}. Predict again with `kit predict`")
    if baselines := baseline_members(files):
        names = ", ".join(baselines)
        output.print_note(f"Baselines among the members: {names}")
    if as_json:
        written: dict[str, Any] = {"file": str(out) if out else None}
        written["members"] = [str(file) for file in files]
        if result.fit:
            written["fit"] = result.fit.as_dict()
        else:
            written["method"] = None if saved else method or ("weights" if weights else "mean")
        return output.print_json(written)
    if result.fit:
        output.print_blend(result.fit)
    if out:
        output.print_note(f"{counted(len(files), 'file')} blended into {out}")
        output.print_note(f"Next: {output.propose_check(out)}")


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
    """Refuse options that contradict each other or would have no effect."""
    if saved:
        why = "it blends as was fitted before."
        options.refuse_combination("--apply", why, fit=oof, truth=truth, subset=subset, save=save)
        options.refuse_combination("--apply", why, weights=weights, method=method)
    elif oof:
        other = None if method == "fit" else method
        options.refuse_combination(
            "--fit", "it finds its own weights.", weights=weights, method=other
        )
    else:
        why = "these are for a blend that --fit FILE fits, for every member."
        options.refuse_combination(
            "A blend without --fit", why, truth=truth, subset=subset, save=save
        )

    if bool(oof) != bool(truth) or (method == "fit" and not oof):
        raise click.UsageError("Fitting takes --fit FILE for every member, and --truth FILE.")
    if method not in (None, "weights"):
        why = "they are for --method weights."
        options.refuse_combination(f"--method {method}", why, weights=weights)
    if bool(files) != bool(out) or not (files or oof):
        raise click.UsageError("Name prediction files and -o FILE.")


COMMANDS = (calibrate_command, ensemble_command)
