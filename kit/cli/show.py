"""What a person sees: tables, progress, JSON. The only importer of rich."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

LEADER = os.environ.get("RANK", "0") == "0"  # of the processes torchrun starts, one speaks


def json_out(value: Any) -> None:
    """Prints a result for programs."""
    if LEADER:
        click.echo(json.dumps(value, indent=1))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; columns of numbers are aligned right, and nothing is cut off when the output is a file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not LEADER:
        return
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        numbers = all(
            isinstance(row[place], int | float) or row[place] in (None, "") for row in rows
        )
        grid.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(cell, row), style="bold" if row and str(row[0]).startswith("*") else None)
    console.print(grid)


def cell(value: Any) -> str:
    """A table cell: numbers to four places, thousands with commas, nothing for None; control characters escaped."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value), "")


def printable(text: str, allowed: str = "\n") -> str:
    """The text without control characters, which names in the data may hold, and a terminal would obey."""
    return "".join(c if c.isprintable() or c in allowed else repr(c)[1:-1] for c in text)


def note(text: str) -> None:
    """A line about what is going on, on stderr so that it never mixes with results."""
    if LEADER:
        click.echo(printable(text), err=True)


@contextmanager
def training(label: str) -> Iterator[Callable[[Any], None]]:
    """A listener for `kit.training.callbacks.Progress`: a bar with time left on a terminal, plain lines elsewhere."""
    with _bar(label) as advance:

        def listen(event: Any) -> None:
            if event.log_loss is not None:
                note(
                    f"{label}  step {event.step}/{event.steps}  epoch {event.epoch:.2f}  "
                    f"training loss {cell(event.loss)}  validation log loss {event.log_loss:.4f}  "
                    f"accuracy {event.accuracy:.3f}  {event.seconds_left / 60:.1f} min left"
                    + ("  best so far" if event.best else "")
                )
            advance(
                event.step,
                event.steps,
                f"loss {event.loss:.4f}" if event.loss is not None else None,
            )

        yield listen


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback of (done, total)."""
    with _bar(label) as advance:
        yield lambda done, total: advance(done, total, None)


@contextmanager
def transferring(label: str) -> Iterator[Callable[[int, int], None]]:
    """The same, of bytes."""
    with _bar(label, size=True) as advance:
        yield lambda done, total: advance(done, total, None)


@contextmanager
def _bar(label: str, size: bool = False) -> Iterator[Callable[[int, int, str | None], None]]:
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
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if size else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None, text="")

        def advance(done: int, total: int, text: str | None) -> None:
            progress.update(task, completed=done, total=total, **({"text": text} if text else {}))

        yield advance


def preprocessed(manifest: dict[str, Any], out: Any) -> None:
    """What preprocess did, with every repair it made."""
    counts, options = manifest["counts"], manifest["options"]
    if manifest["reused"]:
        note(f"{out} holds these very rows already; nothing to do")
    rows = [
        ["training rows", counts["train_rows"]],
        ["  in the holdout", manifest["holdout"]["rows"]],
    ]
    rows += [["test rows", counts["test_rows"]], ["prompt groups", counts["prompt_groups"]]]
    shown = {"train_rows", "test_rows", "prompt_groups", "train_rows_read", "competition_rows"}
    details = {**{k: v for k, v in counts.items() if k not in shown}, **manifest["repairs"]}
    rows += [[name.replace("_", " "), count] for name, count in details.items() if count]
    table(
        f"{out}: {options['text']} text, {options['split']} split, {options['folds']} folds",
        ["rows", "count"],
        rows,
    )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in manifest["frequencies"].items())
    note(f"Classes: {shares}")
    note("Next: kit train --backbone deberta, or tiny-deberta to try the path")


def trained(result: dict[str, Any]) -> None:
    """The parts of a run; a baseline's have no epochs, steps and padding."""

    def part(name: str, m: dict[str, Any]) -> list[Any]:
        epoch, waste = m.get("best_epoch"), m.get("padding_waste")
        shown = [
            epoch and f"{epoch:.2f}",
            m.get("steps"),
            None if waste is None else f"{waste:.1%}",
        ]
        return [name, m["log_loss"], m["accuracy"], *shown, f"{m['minutes']:.1f}"]

    columns = ["part", "log loss", "accuracy", "best epoch", "steps", "padding", "minutes"]
    rows = [part(name, metrics) for name, metrics in result["parts"].items()]
    if "oof" in result:
        rows.append(
            ["out-of-fold", result["oof"]["log_loss"], result["oof"]["accuracy"], *[None] * 4]
        )
    table(result["run"], columns, rows)


def validated(report: Any, file: Any) -> None:
    """Problems and warnings, one a line, and the verdict."""
    for kind, entries in (("problem", report.problems), ("warning", report.warnings)):
        for entry in entries:
            click.echo(f"{kind}: {entry}")
    verdict = (
        "valid"
        if report.ok
        else f"{len(report.problems)} problem{'s' * (len(report.problems) != 1)}"
    )
    click.echo(f"{cell(file)}: {report.rows:,} rows: {verdict}")


def scored(result: Any, file: Any) -> None:
    """The figures, with the two references that need no model."""
    figures = [
        [cell(file), result.log_loss, result.accuracy, result.calibration_error],
        ["class prior", result.prior_log_loss, None, None],
        ["uniform", result.uniform_log_loss, None, None],
    ]
    table(
        f"{result.rows:,} rows",
        ["prediction", "log loss", "accuracy", "calibration error"],
        figures,
    )
    classes = [
        [c.name, c.count, c.share, c.mean_predicted, c.log_loss, c.precision, c.recall]
        for c in result.per_class
    ]
    table(
        "", ["class", "rows", "share", "mean predicted", "log loss", "precision", "recall"], classes
    )


def calibrated(result: Any) -> None:
    """What was fitted and what it is worth on rows it was not fitted to."""
    rows = [[trial.method, trial.in_sample, trial.cross_fitted] for trial in result.tried]
    table(f"{result.rows:,} rows", ["calibration", "in-sample log loss", "cross-fitted"], rows)
    before, after = result.before, result.after
    table(
        f"chosen: {result.method}",
        ["", "log loss", "calibration error"],
        [
            ["before", before.log_loss, before.calibration_error],
            ["after", after.log_loss, after.calibration_error],
        ],
    )
    fitted = result.calibration
    if result.method != "none":
        note(
            f"temperature {fitted.temperature:.4f}, bias {', '.join(f'{b:+.4f}' for b in fitted.bias)}"
        )
    if result.note:
        note(result.note)


def fitted(result: Any) -> None:
    """The fitted blend: members with their weights, and what it is worth beside simpler ways."""
    rows = [[m.name, m.log_loss, m.weight, _spread(m)] for m in result.members]
    table(
        f"{result.rows:,} rows, {result.method}",
        ["member", "log loss alone", "weight", "95% of draws"],
        rows,
    )
    tried = [[trial.method, trial.in_sample, trial.cross_fitted] for trial in result.tried]
    kept = sum(member.weight > 0 for member in result.members)
    tried.append([f"{result.method}, the {kept} kept", result.in_sample, result.cross_fitted])
    table("", ["blend", "in-sample log loss", "cross-fitted"], tried)
    between = (
        "" if result.temperature is None else " ({:.3f} to {:.3f})".format(*result.temperature)
    )
    note(f"temperature {result.blend.calibration.temperature:.4f}{between}")
    gain = result.gain
    note(
        f"against the best member: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], {gain.verdict}"
    )
    for line in result.notes:
        note(line)


def _spread(member: Any) -> str:
    """The interval of a member's weight; a dropped one has none, nor has the only one that is left."""
    if member.low is None:
        return "dropped" * (member.weight == 0)
    return f"{member.low:.3f} to {member.high:.3f}"


def examined(findings: Sequence[Any]) -> None:
    """What doctor found, a line each, what to do below it, and the verdict."""
    colours, width = (
        {"note": "yellow", "broken": "red"},
        max(len(finding.part) for finding in findings),
    )
    for finding in findings:
        state = click.style(f"{finding.state:<6}", fg=colours.get(finding.state))
        click.echo(f"{state}  {finding.part:<{width}}  {cell(finding.found)}")
        if finding.next:
            click.echo(f"{'':<{width + 10}}Next: {cell(finding.next)}")
    broken = [finding.part for finding in findings if finding.broken]
    click.echo(f"Broken: {', '.join(dict.fromkeys(broken))}" if broken else "Nothing is broken")


def compared(report: Any) -> None:
    """The comparison table, and what may be said of each model against the best one."""
    from kit.reporting.comparison import comparison_columns, comparison_rows

    comparison = report.comparison
    table("", comparison_columns(comparison), comparison_rows(comparison))
    for each in report.significance:
        pairs = [each.pair(name, each.best) for name in each.models if name != each.best]
        found = [
            [pair.model, f"{pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]", pair.verdict]
            for pair in pairs
        ]
        table(
            f"{each.rows} rows",
            ["model", f"log loss less that of {each.best} [95%]", "verdict"],
            found,
        )
    if comparison.note:
        note(comparison.note)
    for name in comparison.unfinished:
        note(f"{name} has no finished part and is left out")
