"""Define the commands that judge predictions: validate, score, report; and demo."""

from pathlib import Path

import click

from kit.cli import options, output
from kit.cli.progress import training_progress


@click.command()
@click.argument("file", type=options.FILE)
@click.option("--sample", type=options.FILE, help="The sample submission whose ids it must have.")
@options.as_json
def validate_command(file: Path, sample: Path | None, as_json: bool) -> None:
    """Report every problem of a submission at once, as Kaggle's graders would judge it.

    \b
    Example:  kit validate blend.csv --sample data/raw/sample_submission.csv
    """
    from kit.evaluation.validate import validate_submission

    report = validate_submission(file, sample)
    if as_json:
        output.print_json(report.as_dict())
    else:
        output.print_validation(report, file)
    if not report.ok:
        raise SystemExit(1)


@click.command()
@click.argument("file", type=options.FILE)
@click.option(
    "--truth",
    type=options.FILE,
    required=True,
    help="Labels: a CSV like train.csv, or processed train.parquet.",
)
@click.option(
    "--subset",
    is_flag=True,
    help="Score only the rows that FILE predicts, such as validation rows.",
)
@options.as_json
def score_command(file: Path, truth: Path, subset: bool, as_json: bool) -> None:
    """Compute log loss, accuracy and calibration error, and compare with uniform and class prior.

    \b
    Example:  kit score submissions/blend.csv --truth data/raw/truth.csv
    """
    import kit

    result = kit.score(file, truth, subset=subset)
    if as_json:
        return output.print_json(result.as_dict())
    output.print_score(result, file)


@click.command()
@click.argument("runs", nargs=-1, type=options.FILE)
@options.data
@click.option(
    "--truth",
    type=options.FILE,
    help="Labels of the test rows, or with --frame alone of the rows that the files predict, which "
    f"then need no data folder.{options.TRUTH_DEFAULT}",
)
@click.option(
    "--frame",
    "frames",
    multiple=True,
    metavar="NAME=FILE",
    help="Further predictions, such as a mean; may repeat.",
)
@click.option(
    "--blend", "blends", multiple=True, type=options.FILE, help="A saved blend of them; may repeat."
)
@click.option(
    "-o",
    "--out",
    multiple=True,
    type=options.FILE,
    help="Write a page (.html) or Markdown (.md); may repeat.",
)
@click.option(
    "--ledger",
    type=options.FILE,
    default=Path("submissions/ledger.csv"),
    show_default=True,
    help="Submissions whose scores the page shows, if there are any.",
)
@click.option("--markdown", is_flag=True, help="Print the whole report as Markdown.")
@options.force
@options.wide
@options.as_json
def report_command(
    runs: tuple[Path, ...],
    data: Path,
    truth: Path | None,
    frames: tuple[str, ...],
    blends: tuple[Path, ...],
    out: tuple[Path, ...],
    ledger: Path,
    markdown: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compare runs, or any prediction files, with each other and with references, on the same rows.

    Runs of other folds are compared on the rows that they share.

    \b
    Example:  kit report runs/* --truth data/raw/truth.csv -o report.html
              kit report --frame old=old.csv --frame new=new.csv --truth truth.csv
    """
    if not (runs or frames):
        raise click.UsageError("Name run directories, or prediction files with --frame NAME=FILE.")
    named = [_parse_frame(text) for text in frames]
    if markdown and as_json:
        raise click.UsageError("Choose --markdown or --json.")
    if len({path.resolve() for path in out}) < len(out):
        raise click.UsageError("-o names the same file twice.")

    import kit
    from kit.reporting.export import check_export, write_report
    from kit.reporting.gather import is_truth_for
    from kit.reporting.markdown import render_markdown
    from kit.run import Run

    check_export(out)
    options.refuse_overwrites(out, force)
    known = None if truth else options.find_truth()
    # These labels were found, not asked for: where they are of other rows, the report does without.
    fits = known and is_truth_for(known, runs, data, named)
    truth = known if fits else truth
    result = kit.report(runs, data=data, frames=named, blends=blends, truth=truth, ledger=ledger)
    for path in out:
        write_report(result, path)
    for run in map(Run, runs):
        if outdated := run.outdated_test:
            output.print_note(
                f"{outdated}, so its test predictions are left out. Next: kit predict {run.path}"
            )
    if as_json:
        output.print_json(result.as_dict())
    elif markdown:
        click.echo(render_markdown(result), nl=False)
    else:
        output.print_report(result)
    if fits and result.is_scored_by_truth:
        output.print_note(f"Labels: {known}")
    elif known and not fits and result.inputs.models_with("test"):
        output.print_note(f"{known} is not used: it has other rows than test.csv")
    if out:
        output.print_note(f"Written: {', '.join(map(str, out))}")


def _parse_frame(text: str) -> tuple[str, Path]:
    """Return the name and the file of NAME=FILE; raise UsageError if one is missing."""
    name, _, file = text.partition("=")
    # "." is no file either: it is what an empty path becomes.
    if not name or not file.strip("."):
        raise click.UsageError(f"--frame {text} is not NAME=FILE.")
    return name, Path(file)


@click.command()
@click.option(
    "--out",
    type=options.FILE,
    default=Path("demo"),
    show_default=True,
    help="Folder for everything it makes.",
)
@click.option(
    "--rows",
    type=click.IntRange(200),
    default=4000,
    show_default=True,
    help="Training rows of the sample.",
)
@options.wide
@options.as_json
def demo_command(out: Path, rows: int, as_json: bool) -> None:
    """Run the whole pipeline on the embedded sample.

    \b
    Example:  kit demo
    """
    from kit.demo import run_demo

    report = run_demo(out, rows, log=output.print_note, training=training_progress)
    if as_json:
        return output.print_json(report.as_dict())
    output.print_report(report)
    output.print_note(f"The page: {out / 'report.html'}")


COMMANDS = (validate_command, score_command, report_command)
