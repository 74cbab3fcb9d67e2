"""Define `kit kernels`: the commands push, list, status, wait, open, stop, logs and output."""

import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from kit.cli import options, output, push
from kit.cli.kaggle import connect
from kit.cli.progress import byte_progress
from kit.cli.streams import reader_is_gone

SESSIONS = "https://www.kaggle.com/code?sessions=active"

if TYPE_CHECKING:
    from kit.kaggle.client import Client
    from kit.kaggle.kernel_ref import KernelRef


def _check_names(
    _context: click.Context, _param: click.Parameter, value: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """Return the names as they are; raise for a wrong one before a credential is looked for."""
    from kit.kaggle.kernel_ref import KernelRef

    for name in (value,) if isinstance(value, str) else value:
        KernelRef.parse(name, "you")
    return value


_kernel = click.argument("name", metavar="OWNER/SLUG[/VERSION]", callback=_check_names)


@click.group()
def kernels_group() -> None:
    """Train and predict on Kaggle's GPUs.

    \b
    Example:  kit kernels push train --backbone deberta --wait
    """


kernels_group.add_command(push.push_group)


@kernels_group.command()
@click.option(
    "--limit",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="How many; the state of each is one request.",
)
@options.wide
@options.as_json
def list_command(limit: int, as_json: bool) -> None:
    """List the account's kernels on Kaggle, those that ran last first.

    \b
    Example:  kit kernels list
    """
    from kit.kaggle.kernels import kernel_status, list_kernels

    with connect() as client:
        listed = list_kernels(client, limit)
        states = [kernel_status(client, kernel.ref, missing_ok=True) for kernel in listed]
    rows = [
        {
            "kernel": str(kernel.ref),
            "status": state.status,
            "last run": kernel.last_run,
            "gpu": "yes" if kernel.gpu else "no",
            "title": kernel.title,
        }
        for kernel, state in zip(listed, states, strict=True)
    ]
    if as_json:
        return output.print_json(rows)
    if not rows:
        return output.print_note("None yet. Next: kit kernels push train --backbone deberta-xsmall")
    return output.print_table("", list(rows[0]), [list(row.values()) for row in rows])


@kernels_group.command()
@click.argument("name", metavar="OWNER/SLUG", callback=_check_names)
@options.as_json
def open_command(name: str, as_json: bool) -> None:
    """Open the page of a kernel in the browser.

    \b
    Example:  kit kernels open kit-infer
    """
    url = _find_url(name)
    if as_json:
        return output.print_json({"kernel": name, "url": url})
    click.echo(url)
    click.launch(url)


@kernels_group.command()
@_kernel
@options.as_json
def stop_command(name: str, as_json: bool) -> None:
    """Say how to stop a run, which Kaggle allows on its pages only.

    The exit code is 1 as long as it runs.

    \b
    Example:  kit kernels stop kit-train
    """
    from kit.kaggle.kernels import kernel_status

    with connect() as client:
        state = kernel_status(client, _parse_ref(client, name))
    if as_json:
        output.print_json({"kernel": str(state.ref), "status": state.status, "stop": SESSIONS})
    elif state.active:
        output.print_note(
            f"{state.ref} is {state.status}. Kaggle's API cannot stop a run: open {SESSIONS} and"
            f" stop it there. Then run `kit kernels status {state.ref}`"
        )
    else:
        click.echo(f"{state.ref} is not running: {state.status}")
    if state.active:
        raise SystemExit(1)


@kernels_group.command()
@click.argument("names", nargs=-1, metavar="[OWNER/SLUG[/VERSION]]...", callback=_check_names)
@options.as_json
def status_command(names: tuple[str, ...], as_json: bool) -> None:
    """Show the state of kernels, by default of those in kernels/.

    A run that failed makes the exit code 1.

    \b
    Example:  kit kernels status kit-infer
    """
    from kit.kaggle.kernels import FAILURES, kernel_status
    from kit.kaggle.push import written_kernels

    with connect() as client:
        refs = [_parse_ref(client, name) for name in names]
        if not names:
            # A dry run without a credential writes a folder that names no account.
            written = written_kernels(push.FOLDER)
            refs = [ref for ref in written if ref.owner != push.UNKNOWN_OWNER]
        states = [kernel_status(client, ref, missing_ok=not names) for ref in refs]

    rows = [
        {
            "kernel": str(state.ref),
            "status": state.status,
            "failure": state.failure,
            "url": state.ref.url,
        }
        for state in states
    ]
    if as_json:
        output.print_json(rows)
    elif rows:
        columns = ["kernel", "status", "failure"]
        cells = [[row[column] for column in columns] for row in rows]
        output.print_table("", columns, cells, prose=("failure",))
    else:
        output.print_note(
            f"No kernels in {push.FOLDER}/. Next: kit kernels push train --backbone deberta"
        )

    failed = [state.ref for state in states if state.status in FAILURES]
    for ref in failed:
        output.print_note(f"Next: kit kernels logs {ref}, which shows why")
    if failed:
        raise SystemExit(1)


@kernels_group.command()
@_kernel
@click.option(
    "--every",
    type=click.FloatRange(1),
    default=20.0,
    show_default=True,
    help="Seconds between two requests.",
)
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="MINUTES", help="Give up after this long."
)
@options.as_json
def wait_command(name: str, every: float, timeout: float | None, as_json: bool) -> None:
    """Follow a version to its end, and fail if it fails.

    \b
    Example:  kit kernels wait kit-infer && kit submit --kernel kit-infer
    """
    from kit.kaggle.kernels import look_up_kernel, wait_for_kernel
    from kit.kaggle.notebook import kind_of

    timeout_s = None if timeout is None else timeout * 60
    with connect(attempts=40) as client:
        ref = _parse_ref(client, name)
        kind = kind_of(look_up_kernel(client, ref).source)
        state = wait_for_kernel(
            client,
            ref,
            poll_s=every,
            timeout_s=timeout_s,
            follow_log=True,
            say=output.print_note,
        )

    if as_json:
        result = {"kernel": str(state.ref), "status": state.status, "url": state.ref.url}
        return output.print_json(result)
    click.echo(f"{state.ref} {state.status}")
    output.print_note(push.NEXT[kind].format(ref=state.ref))


@kernels_group.command()
@_kernel
@options.as_json
def logs_command(name: str, as_json: bool) -> None:
    """Print a run's log; while it runs, as it grows.

    \b
    Example:  kit kernels logs kit-infer | tail
    """
    from kit.kaggle.logs import log_records, read_log

    with connect() as client:
        ref = _parse_ref(client, name)
        if as_json:
            return output.print_json({"kernel": str(ref), "log": read_log(client, ref)})
        for piece in log_records(client, ref):
            click.echo(piece, nl=False)
            if reader_is_gone():
                return None


@kernels_group.command()
@_kernel
@click.option(
    "-o", "--out", type=options.FILE, help="The folder to write.  [default: kernels/SLUG.output]"
)
@click.option(
    "--only",
    metavar="PATTERN",
    help="Files to take, in any folder, such as submission.csv or '*.json'.",
)
@click.option(
    "--runs",
    type=options.FILE,
    metavar="FOLDER",
    help="Collect its run directories in FOLDER instead.",
)
@options.force
@options.as_json
def output_command(
    name: str, out: Path | None, only: str | None, runs: Path | None, force: bool, as_json: bool
) -> None:
    """Download and verify what a run has left.

    \b
    Example:  kit kernels output kit-infer --only submission.csv -o submissions
    """
    if runs and (out or only):
        raise click.UsageError("--runs takes whole run directories; leave out --out and --only.")
    from kit.kaggle.collect import collect_folds
    from kit.kaggle.outputs import download_output

    with connect() as client, byte_progress(f"download {name}") as progress:
        ref = _parse_ref(client, name)
        if runs:
            folds = collect_folds(client, ref, runs, say=output.print_note)
            files = [str(fold) for fold in folds]
            result = {"kernel": str(ref), "files": files}
        else:
            folder = out or push.FOLDER / f"{ref.slug}.output"
            downloaded = download_output(
                client,
                ref,
                folder,
                only=lambda file: only is None or _matches(file, only),
                force=force,
                say=output.print_note,
                progress=progress,
            )
            files = [str(folder / file) for file in downloaded.files]
            compared = downloaded.compared
            result = {"kernel": str(ref), "files": files, "hashes_compared": compared}

    if as_json:
        return output.print_json(result)
    for file in files:
        click.echo(file)
    if not files:
        output.print_note(f"{runs} has all of its runs already")


def _matches(file: str, pattern: str) -> bool:
    """Return whether an output file's path fits a pattern, or its name one without a folder."""
    pattern = pattern.removeprefix("/kaggle/working/").removeprefix("./")
    name = PurePosixPath(file).name
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(name, pattern)


def _find_url(name: str) -> str:
    """Return the address of a kernel's page; Kaggle is asked for the account only where needed."""
    from kit.kaggle.kernel_ref import KernelRef

    if "/" in name:
        return KernelRef.parse(name).url
    with connect() as client:
        return _parse_ref(client, name).url


def _parse_ref(client: "Client", name: str) -> "KernelRef":
    """Return the kernel of that name; for the user's own kernels the slug is enough."""
    from kit.kaggle.kernel_ref import KernelRef

    return KernelRef.parse(name, "" if "/" in name else client.owner())
