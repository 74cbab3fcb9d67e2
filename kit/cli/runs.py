"""Define `kit runs`: the list, and the commands show, diff, tag, rm and clean."""

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from kit.cli import options, output
from kit.wording import counted

if TYPE_CHECKING:
    from kit.run import Run
    from kit.tracking.listing import RunLine

KERNELS = Path("kernels")

_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_truth = click.option(
    "--truth",
    type=options.FILE,
    help=f"Labels of the test rows.{options.TRUTH_DEFAULT}",
)


class RunsGroup(click.Group):
    """A group that lists by itself, and says so to whoever looks for a command `list`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or fail with a usage message."""
        if args[0] in ("list", "ls"):
            ctx.fail(f"No such command '{args[0]}': `kit runs` alone lists the runs.")
        return super().resolve_command(ctx, args)


@click.group(cls=RunsGroup, invoke_without_command=True)
@options.runs
@click.option(
    "--sort",
    default="age",
    metavar="COLUMN",
    help="A column or recipe key, such as oof, size or lr.  [default: age, the newest first]",
)
@click.option("--reverse", is_flag=True, help="Begin with the highest value.")
@click.option(
    "--filter",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Such as state=finished, oof<1.02, lr>=2e-5, tags=best or name~deberta; may repeat.",
)
@_truth
@options.wide
@options.as_json
@click.pass_context
def runs_group(
    context: click.Context,
    runs: Path,
    sort: str,
    reverse: bool,
    conditions: tuple[str, ...],
    truth: Path | None,
    as_json: bool,
) -> None:
    """List the runs: state, losses, and the recipe keys in which they differ.

    \b
    Example:  kit runs --sort loss --filter state=finished
    """
    if context.invoked_subcommand:
        return None
    from kit.tracking.listing import list_runs

    lines = list_runs(
        runs, conditions=conditions, sort=sort, reverse=reverse, truth=truth or options.find_truth()
    )
    if as_json:
        return output.print_json([line.as_dict() for line in lines])
    if lines:
        return print_runs(lines, f"{counted(len(lines), 'run')} in {runs}")
    why = "fits" if conditions else "is there yet. Next: kit train --backbone tiny-deberta"
    return output.print_note(f"No run in {runs} {why}")


@runs_group.command()
@click.argument("run")
@options.runs
@_truth
@options.as_json
def show_command(run: str, runs: Path, truth: Path | None, as_json: bool) -> None:
    """Show one run: its folds, losses, recipe, rows and files.

    RUN is a folder, a name in --runs, or a part of a name.

    \b
    Example:  kit runs show deberta-9493f719
    """
    from kit.tracking.listing import find_run, list_runs

    found = find_run(run, runs)
    (line,) = [
        line
        for line in list_runs(found.path.parent, truth=truth or options.find_truth())
        if line.path.name == found.path.name
    ]
    if as_json:
        return output.print_json(line.as_dict() | {"parts": found.metrics["parts"]})
    output.print_run(found.metrics)
    output.print_pairs(_details(found, line))


@runs_group.command()
@click.argument("first")
@click.argument("second")
@options.runs
@_truth
@options.as_json
def diff_command(first: str, second: str, runs: Path, truth: Path | None, as_json: bool) -> None:
    """Compare the recipes, rows and losses of two runs.

    \b
    Example:  kit runs diff deberta-9493f719 deberta-1a2b3c4d
    """
    from kit.tracking.differences import compare_recipes, format_key
    from kit.tracking.listing import describe_run, find_run

    pair = [find_run(name, runs) for name in (first, second)]
    lines = [describe_run(run, truth or options.find_truth()) for run in pair]
    keys = compare_recipes(*pair)
    origins = [run.origin for run in pair]
    rows = {
        name: (origins[0].get(name), origins[1].get(name))
        for name in ("data", "text", "split", "folds", "valid", "seed", "embed", "kit")
        if origins[0].get(name) != origins[1].get(name)
    }
    losses = {
        name: (getattr(lines[0], name), getattr(lines[1], name))
        for name in ("oof", "holdout", "test")
        if getattr(lines[0], name) is not None or getattr(lines[1], name) is not None
    }
    if as_json:
        return output.print_json({"recipe": keys, "rows": rows, "losses": losses})

    table: list[list[Any]] = [
        [name, *("" if value is None else format_key(value) for value in values)]
        for name, values in (*keys.items(), *rows.items())
    ]
    table += [[f"{name} log loss", *map(output.format_cell, pair)] for name, pair in losses.items()]
    # A run that has none of these still needs its column, which has its name.
    columns = ["", *(line.name for line in lines)]
    output.print_table("", columns, table, keep_empty=True)


@runs_group.command()
@click.argument("run")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--remove", multiple=True, metavar="TAG", help="Take a tag away; may repeat.")
@options.runs
@options.as_json
def tag_command(
    run: str, tags: tuple[str, ...], remove: tuple[str, ...], runs: Path, as_json: bool
) -> None:
    """Give a run tags, to find it again with --filter.

    \b
    Example:  kit runs tag deberta-9493f719 best submitted
    """
    from kit.tracking.listing import find_run
    from kit.tracking.tags import change_tags

    path = find_run(run, runs).path
    now = change_tags(path, tags, remove)
    if as_json:
        return output.print_json({"run": str(path), "tags": list(now)})
    click.echo(f"{path}: {', '.join(now) or 'no tags'}")


@runs_group.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@_yes
@options.runs
@options.as_json
def rm_command(names: tuple[str, ...], yes: bool, runs: Path, as_json: bool) -> None:
    """Delete runs with their models and predictions; asks first.

    \b
    Example:  kit runs rm deberta-9493f719
    """
    from kit.tracking.cleaning import delete_run
    from kit.tracking.listing import describe_run, find_run

    found = {run.path.resolve(): run for run in (find_run(name, runs) for name in names)}
    rows = [[str(run.path), format_size(describe_run(run).size)] for run in found.values()]
    if not yes:
        output.print_table("", ["run", "size"], rows)
        _confirm(f"Delete {'this run' if len(rows) == 1 else f'these {len(rows)} runs'} for good?")
    for run in found.values():
        delete_run(run)
    deleted = [str(run.path) for run in found.values()]
    if as_json:
        return output.print_json({"deleted": deleted})
    output.print_note(f"Deleted: {', '.join(deleted)}")


@runs_group.command()
@_yes
@options.runs
@options.data
@click.option(
    "--kernels",
    type=options.FILE,
    default=KERNELS,
    show_default=True,
    help="Where the notebooks' folders are.",
)
@options.as_json
def clean_command(yes: bool, runs: Path, data: Path, kernels: Path, as_json: bool) -> None:
    """Delete caches, old checkpoints and downloaded outputs; asks first.

    Models, predictions, and checkpoints that a training can continue from stay.

    \b
    Example:  kit runs clean
    """
    from kit.tracking.cleaning import delete_leftovers, find_leftovers

    leftovers = find_leftovers(runs, data, kernels)
    if leftovers and not yes:
        rows = [[str(item.path), format_size(item.size), item.what] for item in leftovers]
        output.print_table("", ["what", "size", "why"], rows, prose=("why",))
        _confirm(f"Delete {format_size(sum(item.size for item in leftovers))}?")
    freed = delete_leftovers(leftovers)
    if as_json:
        paths = [str(item.path) for item in leftovers]
        return output.print_json({"deleted": paths, "bytes": freed})
    output.print_note(f"{format_size(freed)} freed" if leftovers else "There is nothing to delete")


def print_runs(lines: "list[RunLine]", title: str) -> None:
    """Print the table of runs."""
    from kit.tracking.differences import describe_keys

    table = [
        {
            "run": line.name,
            "state": line.state.partition(":")[0],
            "folds": _folds(line),
            "oof": line.oof,
            "holdout": line.holdout,
            "test": line.test,
            "what differs": describe_keys(line.differs),
            "tags": " ".join(line.tags),
            "min": f"{line.minutes:.1f}" if line.finished else "",
            "size": format_size(line.size),
            "age": format_age(line.age),
        }
        for line in lines
    ]
    columns = list(table[0])
    rows = [list(row.values()) for row in table]
    order = ("size", "min", "age", "folds", "tags", "holdout", "test", "state")
    drop = [columns.index(name) for name in order]
    output.print_table(title, columns, rows, prose=("what differs",), drop=drop)
    for line in lines:
        if line.outdated:
            output.print_note(f"{line.outdated}. Next: kit predict {quote(str(line.path))}")
        if ":" in line.state:
            output.print_note(f"{line.name}: {line.state.partition(': ')[2]}")


def _folds(line: "RunLine") -> str:
    """Return which parts are finished, such as "5/5", "holdout", or "2/5, holdout"."""
    folds = sum(name != "holdout" for name in line.finished)
    counted = f"{folds}/{line.folds}" if folds or not line.finished else ""
    return ", ".join(filter(None, (counted, "holdout" * ("holdout" in line.finished))))


def _details(run: "Run", line: "RunLine") -> dict[str, str]:
    """Return what `kit runs show` prints below the table of folds."""
    from kit.tracking.differences import describe_keys

    origin = run.origin
    rows = [
        f"{name} {origin[name]}" for name in ("text", "split", "folds", "seed") if name in origin
    ]
    details = {
        "state": line.state,
        "test log loss": output.format_cell(line.test),
        "recipe": str(run.recipe_path) if line.recipe else run.command.removeprefix("kit "),
        "backbone": str(line.recipe.get("backbone", "")),
        "what differs": describe_keys(line.differs),
        "tags": " ".join(line.tags),
        "rows": ", ".join(rows),
        "made by": f"kit {line.kit}, {format_age(line.age)} ago",
        "size": format_size(line.size),
    }
    return {name: text for name, text in details.items() if text}


def can_ask() -> bool:
    """Return whether a person at a terminal can answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


class NoTerminalError(click.ClickException):
    """A wrong usage of which the usage line of the command would tell nothing."""

    exit_code = 2


def _confirm(question: str) -> None:
    """Ask on the terminal, and exit after a no, or with a message if there is no terminal."""
    if not can_ask():
        raise NoTerminalError("There is no terminal to ask on: add --yes.")
    if not click.confirm(question, err=True):
        output.print_note("Nothing was deleted")
        raise SystemExit(1)


def format_size(size: float) -> str:
    """Return bytes in a unit in which they have up to three digits, such as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if size < 9.95 and unit != "B" else f"{size:.0f} {unit}"


def format_age(seconds: float) -> str:
    """Return a time in its largest unit, such as "3 h"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
