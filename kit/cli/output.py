"""Print what a person sees: tables, progress, notes and JSON. Nothing else in kit imports rich.

Results go to standard output, everything else to standard error. Under torchrun only the first
process prints.
"""

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kit.launcher import is_leader

if TYPE_CHECKING:
    from kit.doctor import Finding
    from kit.ensembling.fit_blend import BlendFit, BlendMember
    from kit.ensembling.fit_calibration import CalibrationFit
    from kit.evaluation.metrics import Score
    from kit.evaluation.validate import ValidationReport
    from kit.reporting.report import Report
    from kit.training.callbacks import TrainingProgress

LEADER = is_leader()

# The width of tables that are written to a file, wide enough that nothing is cut off.
FILE_WIDTH = 200


def print_json(value: Any) -> None:
    """Print a result for programs."""
    if LEADER:
        click.echo(json.dumps(value, indent=1))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, with numbers aligned right and rows whose first cell begins with * in bold."""
    if not LEADER:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else FILE_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    # Not the title of the table: rich would break it at the width of the table.
    if title:
        console.print(title, style="italic")
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        cells = [row[place] for row in rows]
        is_numeric = all(isinstance(cell, int | float) or cell in (None, "") for cell in cells)
        grid.add_column(name, justify="right" if is_numeric else "left", overflow="fold")
    for row in rows:
        style = "bold" if row and str(row[0]).startswith("*") else None
        grid.add_row(*map(format_cell, row), style=style)

    # Printed as a text: where the reader has ended, rich itself would end the process.
    with console.capture() as captured:
        console.print(grid)
    click.echo(captured.get(), nl=False)


def format_cell(value: Any) -> str:
    """Return a table cell: numbers to four places, thousands with commas, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return escape_control(str(value), keep="")


def escape_control(text: str, keep: str = "\n") -> str:
    """Escape control characters, which names in the data may contain and a terminal would obey."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def print_note(text: str) -> None:
    """Print a message to standard error, so that results can be redirected without it."""
    if LEADER:
        click.echo(escape_control(text), err=True)


@contextmanager
def training_progress(label: str) -> "Generator[Callable[[TrainingProgress], None]]":
    """Yield a listener that shows a bar with the time left, and a line for each evaluation."""
    with _progress_bar(label) as advance:

        def show(progress: "TrainingProgress") -> None:
            if progress.log_loss is not None:
                print_note(
                    f"{label}  step {progress.step}/{progress.steps}  epoch {progress.epoch:.2f}  "
                    f"training loss {format_cell(progress.loss)}  "
                    f"validation log loss {progress.log_loss:.4f}  "
                    f"accuracy {format_accuracy(progress.accuracy)}  "
                    f"{progress.seconds_left / 60:.1f} min left"
                    + ("  best so far" if progress.best else "")
                )
            text = None if progress.loss is None else f"loss {progress.loss:.4f}"
            advance(progress.step, progress.steps, text)

        yield show


def format_accuracy(accuracy: float | None) -> str:
    """Return an accuracy to three places, nothing for None."""
    return "" if accuracy is None else f"{accuracy:.3f}"


@contextmanager
def count_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield a callback of (done, total) that shows a bar."""
    with _progress_bar(label) as advance:
        yield lambda done, total: advance(done, total, None)


@contextmanager
def byte_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield a callback of (bytes done, all bytes) that shows a bar."""
    with _progress_bar(label, in_bytes=True) as advance:
        yield lambda done, total: advance(done, total, None)


@contextmanager
def _progress_bar(
    label: str, in_bytes: bool = False
) -> Generator[Callable[[int, int, str | None], None]]:
    """Yield a function of (done, total, text) that moves a bar; on no terminal it does nothing."""
    if not (LEADER and sys.stderr.isatty()):
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None, text="")

        def advance(done: int, total: int, text: str | None) -> None:
            progress.update(task, completed=done, total=total)
            if text:
                progress.update(task, text=text)

        yield advance


def print_preprocessed(manifest: dict[str, Any], out: Any) -> None:
    """Print the rows that preprocessing left, and every repair it made."""
    counts = manifest["counts"]
    options = manifest["options"]
    if manifest["reused"]:
        print_note(f"{out} already holds these rows; nothing to do")

    rows = [
        ["training rows", counts["train_rows"]],
        ["  in the holdout", manifest["holdout"]["rows"]],
        ["test rows", counts["test_rows"]],
        ["prompt groups", counts["prompt_groups"]],
    ]
    shown = {"train_rows", "test_rows", "prompt_groups", "train_rows_read", "competition_rows"}
    details = {name: count for name, count in counts.items() if name not in shown}
    details |= manifest["repairs"]
    rows += [[name.replace("_", " "), count] for name, count in details.items() if count]
    title = f"{out}: {options['text']} text, {options['split']} split, {options['folds']} folds"
    print_table(title, ["rows", "count"], rows)

    shares = ", ".join(f"{name} {share:.1%}" for name, share in manifest["frequencies"].items())
    print_note(f"Classes: {shares}")
    print_note("Next: kit train --backbone deberta, or tiny-deberta to try the path")


def print_run(metrics: dict[str, Any]) -> None:
    """Print the folds of a run; those of a baseline have no epochs, steps and padding."""
    columns = ["fold", "log loss", "accuracy", "best epoch", "steps", "padding", "minutes"]
    rows = []
    for name, fold in metrics["parts"].items():
        epoch = fold.get("best_epoch")
        waste = fold.get("padding_waste")
        rows.append(
            [
                name,
                fold["log_loss"],
                fold["accuracy"],
                epoch and f"{epoch:.2f}",
                fold.get("steps"),
                None if waste is None else f"{waste:.1%}",
                f"{fold['minutes']:.1f}",
            ]
        )
    if "oof" in metrics:
        oof = metrics["oof"]
        rows.append(["out-of-fold", oof["log_loss"], oof["accuracy"], None, None, None, None])
    print_table(metrics["run"], columns, rows)


def print_validation(report: "ValidationReport", file: Any) -> None:
    """Print problems and warnings, one a line, and the verdict."""
    for problem in report.problems:
        click.echo(f"problem: {problem}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    count = len(report.problems)
    verdict = "valid" if report.ok else f"{count} problem{'s' * (count != 1)}"
    click.echo(f"{format_cell(file)}: {report.rows:,} rows: {verdict}")


def print_score(score: "Score", file: Any) -> None:
    """Print the figures of a prediction, and of two references that need no model."""
    figures = [
        [format_cell(file), score.log_loss, score.accuracy, score.calibration_error],
        ["class prior", score.prior_log_loss, None, None],
        ["uniform", score.uniform_log_loss, None, None],
    ]
    columns = ["prediction", "log loss", "accuracy", "calibration error"]
    print_table(f"{score.rows:,} rows", columns, figures)

    classes = [
        [c.name, c.count, c.share, c.mean_predicted, c.log_loss, c.precision, c.recall]
        for c in score.per_class
    ]
    columns = ["class", "rows", "share", "mean predicted", "log loss", "precision", "recall"]
    print_table("", columns, classes)


def print_calibration(fit: "CalibrationFit") -> None:
    """Print what was fitted, and what it gains on rows that it was not fitted to."""
    rows = [[trial.method, trial.in_sample, trial.cross_fitted] for trial in fit.tried]
    columns = ["calibration", "in-sample log loss", "cross-fitted"]
    print_table(f"{fit.rows:,} rows", columns, rows)
    rows = [
        ["before", fit.before.log_loss, fit.before.calibration_error],
        ["after", fit.after.log_loss, fit.after.calibration_error],
    ]
    print_table(f"chosen: {fit.method}", ["", "log loss", "calibration error"], rows)

    if fit.method != "none":
        calibration = fit.calibration
        biases = ", ".join(f"{bias:+.4f}" for bias in calibration.bias)
        print_note(f"temperature {calibration.temperature:.4f}, bias {biases}")
    if fit.note:
        print_note(fit.note)


def print_blend(fit: "BlendFit") -> None:
    """Print a fitted blend: members, weights, and its loss next to that of simpler blends."""
    rows = [[m.name, m.log_loss, m.weight, _weight_interval(m)] for m in fit.members]
    columns = ["member", "log loss alone", "weight", "95% of draws"]
    print_table(f"{fit.rows:,} rows, {fit.method}", columns, rows)

    tried = [[trial.method, trial.in_sample, trial.cross_fitted] for trial in fit.tried]
    kept = sum(member.weight > 0 for member in fit.members)
    tried.append([f"{fit.method}, the {kept} kept", fit.in_sample, fit.cross_fitted])
    print_table("", ["blend", "in-sample log loss", "cross-fitted"], tried)

    interval = ""
    if fit.temperature is not None:
        interval = " ({:.3f} to {:.3f})".format(*fit.temperature)
    print_note(f"temperature {fit.blend.calibration.temperature:.4f}{interval}")
    gain = fit.gain
    print_note(
        f"against the best member: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], "
        f"{gain.verdict}"
    )
    for line in fit.notes:
        print_note(line)


def _weight_interval(member: "BlendMember") -> str:
    """Return the interval of a member's weight; a dropped or single member has none."""
    if member.low is None:
        return "dropped" * (member.weight == 0)
    return f"{member.low:.3f} to {member.high:.3f}"


def print_findings(findings: "Sequence[Finding]") -> None:
    """Print what doctor found, one line each with the next step below it, and the verdict."""
    colours = {"note": "yellow", "broken": "red"}
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        state = click.style(f"{finding.state:<6}", fg=colours.get(finding.state))
        click.echo(f"{state}  {finding.part:<{width}}  {format_cell(finding.found)}")
        if finding.next:
            click.echo(f"{'':<{width + 10}}Next: {format_cell(finding.next)}")

    broken = dict.fromkeys(finding.part for finding in findings if finding.broken)
    click.echo(f"Broken: {', '.join(broken)}" if broken else "Nothing is broken")


def print_report(report: "Report") -> None:
    """Print the comparison, how clearly each model differs from the best one, and the answer."""
    from kit.reporting.comparison import comparison_columns, comparison_rows
    from kit.reporting.headline import summarise_answer

    comparison = report.comparison
    print_table("", comparison_columns(comparison), comparison_rows(comparison))
    for test in report.significance:
        pairs = [test.pair(name, test.best) for name in test.models if name != test.best]
        rows = [
            [pair.model, f"{pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]", pair.verdict]
            for pair in pairs
        ]
        columns = ["model", f"log loss minus that of {test.best} [95%]", "verdict"]
        print_table(f"{test.rows} rows", columns, rows)

    for group in report.groups:
        shared = group.comparison
        print_table(shared.validation, comparison_columns(shared), comparison_rows(shared))

    click.echo(escape_control(summarise_answer(report)))
    if comparison.note:
        print_note(comparison.note)
    for left_out in comparison.left_out:
        print_note(f"{left_out.name} is left out: {left_out.reason}")
    for run in report.inputs.foreign:
        print_note(f"{run.name} is left out: it was trained on other data, {run.data}")
