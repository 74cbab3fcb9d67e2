"""Print what a person sees: tables, notes and JSON. Only this and `kit.cli.progress` import rich.

Results go to standard output, everything else to standard error. Under torchrun only the first
process prints.
"""

import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.cli.progress import print_above_display
from kit.launcher import is_leader
from kit.wording import counted

if TYPE_CHECKING:
    from kit.doctor import Finding
    from kit.ensembling.fit_blend import BlendFit, BlendMember
    from kit.ensembling.fit_calibration import CalibrationFit
    from kit.evaluation.metrics import Score
    from kit.evaluation.validate import ValidationReport
    from kit.recipe.spec import Recipe
    from kit.reporting.report import Report

LEADER = is_leader()

# The folder of processed rows where no other is named.
DATA = Path("data/processed")

# The width of tables that are written to a file, wide enough that nothing is cut off.
FILE_WIDTH = 200

# Running text is given at least this width, so that it does not become a column of single words.
PROSE_WIDTH = 24

# A number, with its unit, or nothing.
_NUMBER = re.compile(r"([-+]?[\d.,]+ ?([a-zA-Z]{0,3}|%))?")

# The key of the option --wide in the context of a command.
WIDE = "kit.wide"


def print_json(value: Any) -> None:
    """Print a result for programs."""
    if LEADER:
        click.echo(json.dumps(value, indent=1))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    prose: Collection[str] = (),
    drop: Sequence[int] | None = None,
    apart: Sequence[Sequence[Any]] = (),
    keep_empty: bool = False,
) -> None:
    """Print a table, with numbers aligned right and rows whose first cell begins with * in bold.

    No number and no word is broken. A column that no row fills is left out. Where the terminal is
    too narrow and the command has `--wide`, further ones are, and a note at its end says so.

    Args:
        prose: the columns whose cells may take several lines.
        drop: positions of the columns that may be left out, the first one first; by default all
            but the first column, from the last on.
        apart: rows below the others, which do not count as filling a column.
        keep_empty: show columns that no row fills, too.
    """
    if not LEADER:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    make_console = partial(Console, highlight=False, markup=False, emoji=False)
    in_file = int(os.environ.get("COLUMNS") or FILE_WIDTH)
    available = make_console().width if sys.stdout.isatty() else in_file
    # Not the title of the table: rich would break it at the width of the table.
    if title:
        click.secho(escape_control(title, keep=""), italic=True)

    cells = [[format_cell(cell) for cell in row] for row in (*rows, *apart)]
    counted = cells[: len(rows)]
    # The first column says what a row is. Without rows the titles are all there is.
    filled = [
        place
        for place in range(len(columns))
        if place == 0 or keep_empty or not counted or any(row[place] for row in counted)
    ]
    droppable = range(len(columns) - 1, 0, -1) if drop is None else drop
    shown = _choose_columns(columns, filled, cells, prose, droppable, available)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, width in shown.items():
        is_numeric = all(_NUMBER.fullmatch(row[place]) for row in cells)
        grid.add_column(
            "\n".join(textwrap.wrap(columns[place], max(width, 1), break_long_words=False)),
            justify="right" if is_numeric else "left",
            no_wrap=columns[place] not in prose,
            min_width=width,
        )
    for row in cells:
        style = "bold" if row and row[0].startswith("*") else None
        grid.add_row(*(row[place] for place in shown), style=style)

    # Printed as a text: where the reader has ended, rich itself would end the process. What is too
    # wide after all is left to the terminal, because a cut cell could not be copied.
    console = make_console(width=max(available, _table_width(shown.values())))
    with console.capture() as captured:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    if len(shown) < len(filled):
        _propose_wide()


def _propose_wide() -> None:
    """Say at the command's end, once for all its tables, how to see the columns left out."""
    context = click.get_current_context()
    said = f"{WIDE} proposed by {context.command_path}"
    if said not in context.meta:
        context.meta[said] = True
        context.call_on_close(lambda: print_note("Add --wide for all columns"))


def _wide() -> bool | None:
    """Return the value of the command's option --wide, None if it has none."""
    context = click.get_current_context(silent=True)
    # A group shares its `meta` with its commands, which may have no such option.
    return context.meta.get((WIDE, context.command_path)) if context else None


def _choose_columns(
    columns: Sequence[str],
    filled: Sequence[int],
    cells: Sequence[Sequence[str]],
    prose: Collection[str],
    droppable: Iterable[int],
    available: int,
) -> dict[int, int]:
    """Return the positions of those `filled` columns to show, each with its least width."""
    widths = {
        place: _column_width(columns[place], [row[place] for row in cells], columns[place] in prose)
        for place in filled
    }
    if _wide() is False:
        for place in droppable:
            if place in widths and _table_width(widths.values()) > available:
                del widths[place]

    # Where there is room, titles stay on one line.
    titled = {place: max(width, len(columns[place])) for place, width in widths.items()}
    return titled if _table_width(titled.values()) <= available else widths


def _column_width(name: str, cells: Sequence[str], is_prose: bool) -> int:
    """Return the least width of a column in which nothing is broken."""
    from rich.cells import cell_len

    words = [word for text in (name, *(cells if is_prose else ())) for word in text.split()]
    longest = max(map(cell_len, [*words, *(() if is_prose else cells)]), default=0)
    return max(longest, min(PROSE_WIDTH, *map(cell_len, cells))) if is_prose and cells else longest


def _table_width(widths: Collection[int]) -> int:
    """Return the width of a table of these columns: two blanks between them, one at each edge."""
    return sum(widths) + 2 * (len(widths) - 1) + 2


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print a name and a text on each line, the texts below each other."""
    if not LEADER:
        return
    width = max(map(len, pairs), default=0)
    for name, text in pairs.items():
        click.echo(f"{name:<{width}}  {escape_control(text, keep='')}")


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
        print_above_display(escape_control(text))


def repeat_data(folder: Path) -> str:
    """Return the option --data that the next command needs, "" for the default folder."""
    return "" if folder == DATA else f" --data {shlex.quote(str(folder))}"


def propose_check(file: Path) -> str:
    """Return the command that checks predictions of the test rows, with their ids if known."""
    sample = Path("data/raw/sample_submission.csv")
    ids = f" --sample {sample}" if sample.is_file() else ""
    return f"kit validate {shlex.quote(str(file))}{ids}"


def print_backbone(requested: str | None, recipe: "Recipe") -> None:
    """Say what a short name of a backbone means, and which recipe a folder or a hub id gets."""
    from kit.model.registry import find_record
    from kit.recipe.load import is_hub_id

    record = find_record(recipe.backbone)
    is_known = not requested or not (is_hub_id(requested) or Path(requested).is_dir())
    # With --recipe the purpose is that recipe's own.
    if not is_known and recipe.purpose.endswith(f" with {requested}"):
        print_note(recipe.purpose)
    elif record and requested == record.name != record.full_name:
        print_note(f"{record.name} is {record.full_name} ({record.hub_id})")


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


def print_run(metrics: dict[str, Any]) -> None:
    """Print the folds of a run, without the columns that no fold fills: a baseline has no steps."""
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
    filled = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    rows = [[row[place] for place in filled] for row in rows]
    print_table(metrics["run"], [columns[place] for place in filled], rows)


def print_validation(report: "ValidationReport", file: Any) -> None:
    """Print problems and warnings, one a line, and the verdict."""
    for problem in report.problems:
        click.echo(f"problem: {problem}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    verdict = "valid" if report.ok else counted(len(report.problems), "problem")
    click.echo(f"{format_cell(file)}: {counted(report.rows, 'row')}: {verdict}")


def print_score(score: "Score", file: Any) -> None:
    """Print the figures of a prediction, and of two references that need no model."""
    figures = [
        ["prediction", score.log_loss, score.accuracy, score.calibration_error],
        ["class prior", score.prior_log_loss, None, None],
        ["uniform", score.uniform_log_loss, None, None],
    ]
    columns = ["", "log loss", "accuracy", "calibration error"]
    print_table(f"{file}: {counted(score.rows, 'row')}", columns, figures)

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
    from kit.reporting.headline import summarise_answer, summarise_resampling

    comparison = report.comparison
    # The columns from the last on, but the accuracies before the losses with their intervals.
    drop = (7, 6, 5, 4, 2, 3)
    rows, references = comparison_rows(comparison)
    title = f"{comparison.rows}; {summarise_resampling(report)}"
    print_table(title, comparison_columns(comparison), rows, drop=drop, apart=references)
    for test in report.significance:
        pairs = [test.pair(name, test.best) for name in test.models if name != test.best]
        rows = [
            [pair.model, f"{pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]", pair.verdict]
            for pair in pairs
        ]
        columns = ["model", "log loss minus that of the best [95%]", "verdict"]
        print_table(f"{test.title}, the best is {test.best}", columns, rows)

    for group in report.groups:
        shared = group.comparison
        rows, references = comparison_rows(shared)
        columns = comparison_columns(shared)
        title = f"Compared apart: {shared.rows}"
        print_table(title, columns, rows, drop=drop, apart=references)

    click.echo(escape_control(summarise_answer(report)))
    if comparison.note:
        print_note(comparison.note)
    for left_out in comparison.left_out:
        print_note(left_out.describe())
    for run in report.inputs.foreign:
        print_note(f"{run.name} is left out: it was trained on other data, {run.data}")
