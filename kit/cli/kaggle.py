"""Define the commands about the competition on Kaggle: download, submit, submissions."""

import dataclasses
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from kit.cli import options, output
from kit.cli.progress import byte_progress
from kit.kaggle.ledger import LEDGER

if TYPE_CHECKING:
    from kit.kaggle.client import Client
    from kit.kaggle.ledger import LedgerEntry
    from kit.kaggle.submissions import Submission

ledger_file = click.option(
    "--ledger",
    "ledger_path",
    type=options.FILE,
    default=LEDGER,
    show_default=True,
    help="The ledger.",
)


def connect(attempts: int = 6) -> "Client":
    """Return a client with this machine's Kaggle credential, which prints a note when it retries.

    Args:
        attempts: how often a call is tried. A wait of hours needs more than a single command: 40
            attempts survive half an hour without a network.
    """
    from kit.kaggle.client import Client
    from kit.kaggle.retry import RetryPolicy

    return Client(patience=RetryPolicy(attempts=attempts, say=output.print_note))


@click.command()
@click.option(
    "--out",
    type=options.FILE,
    default=Path("data/raw"),
    show_default=True,
    help="Folder to write to.",
)
@options.competition
@options.force
@options.as_json
def download_command(out: Path, competition: str, force: bool, as_json: bool) -> None:
    """Download the competition's files, verified and unpacked.

    \b
    Example:  kit download --out data/raw
    """
    from kit.kaggle.download import download_competition

    with connect() as client, byte_progress(f"download {competition}") as progress:
        result = download_competition(
            client,
            out,
            competition=competition,
            force=force,
            say=output.print_note,
            progress=progress,
        )
    for warning in result.warnings:
        output.print_note(f"Warning: {warning}")

    if as_json:
        return output.print_json({**dataclasses.asdict(result), "folder": str(result.folder)})
    output.print_table(str(out), ["file", "bytes"], list(result.sizes.items()))
    if result.train_sha256:
        output.print_note(f"train.csv has the SHA-256 {result.train_sha256}")
    output.print_note(f"Next: kit preprocess --raw {quote(str(out))}")


@click.command()
@click.argument("file", required=False, type=options.FILE)
@click.option(
    "--kernel",
    metavar="OWNER/SLUG[/VERSION]",
    help="A finished inference kernel; by default its latest version.",
)
@click.option(
    "-m", "--message", required=True, help="What this submission is; Kaggle and the ledger keep it."
)
@click.option("--wait", "follow", is_flag=True, help="Wait for its score.")
@click.option(
    "--sample",
    type=options.FILE,
    help="A file with the ids it must have, such as sample_submission.csv.",
)
@options.local_score
@click.option("--force", is_flag=True, help="Submit a version that the ledger has already.")
@options.runs
@options.data
@options.competition
@ledger_file
@options.as_json
def submit_command(
    file: Path | None,
    kernel: str | None,
    message: str,
    follow: bool,
    sample: Path | None,
    local_score: str,
    force: bool,
    runs: Path,
    data: Path,
    competition: str,
    ledger_path: Path,
    as_json: bool,
) -> None:
    """Submit a kernel version, or a FILE where a competition takes files.

    What would fail is refused before it counts. Every submission is recorded in the ledger.

    \b
    Example:  kit submit --kernel kit-infer -m "two encoders, mean" --wait
    """
    if (file is None) == (kernel is None):
        raise click.UsageError(
            "Give --kernel OWNER/SLUG, or a FILE for competitions that take files."
        )
    from kit.kaggle.submissions import wait_for_score
    from kit.kaggle.submit import check_submission, submit_file, submit_kernel

    # Wrong arguments are reported even to a user without a credential.
    check_submission(kernel, file, sample)
    common = {
        "competition": competition,
        "sample": sample,
        "local_score": local_score,
        "ledger_path": ledger_path,
        "say": output.print_note,
    }
    with connect() as client:
        if file is not None:
            entry = submit_file(client, file, message, **common)
        else:
            # One of the two is given, see above.
            assert kernel is not None
            entry = submit_kernel(
                client, kernel, message, force=force, runs=runs, data=data, **common
            )
    # A new connection, since the wait may take hours and needs more attempts.
    if follow:
        with connect(attempts=40) as client:
            entry = wait_for_score(client, entry, ledger_path=ledger_path, say=output.print_note)

    if as_json:
        return output.print_json(dataclasses.asdict(entry))
    click.echo(f"submission {entry.ref} {entry.status}{_describe_scores(entry)}")
    if not follow:
        output.print_note(
            "Next: kit submissions, in some hours: Kaggle runs the notebook again on the hidden "
            "test set"
        )


@click.command()
@options.competition
@ledger_file
@options.wide
@options.as_json
def submissions_command(competition: str, ledger_path: Path, as_json: bool) -> None:
    """List the submissions with Kaggle's scores and the ledger's notes.

    \b
    Example:  kit submissions
    """
    from kit.kaggle.submissions import list_submissions

    with connect() as client:
        pairs = list_submissions(client, competition=competition, ledger_path=ledger_path)

    if as_json:
        rows = [
            {
                "kaggle": submission and dataclasses.asdict(submission),
                "ledger": entry and dataclasses.asdict(entry),
            }
            for submission, entry in pairs
        ]
        return output.print_json(rows)
    columns = ["ref", "date", "status", "public", "local", "public - local"]
    columns += ["kernel or file", "message", "error"]
    drop = [columns.index(name) for name in ("kernel or file", "date", "status")]
    rows = [_row(*pair) for pair in pairs]
    output.print_table(competition, columns, rows, prose=("message",), drop=drop)
    if not pairs:
        output.print_note(
            'None yet. Next: kit submit --kernel kit-infer -m "…", once an inference kernel is '
            "complete"
        )


def _describe_scores(entry: "LedgerEntry") -> str:
    """Return the scores of a submission as the end of a line."""
    public = f"public score {entry.public_score}" if entry.public_score else ""
    local = f"local score {entry.local_score}" if entry.local_score else ""
    difference = entry.public_minus_local
    between = "" if difference is None else f"difference {difference:+.4f}"
    scores = ", ".join(filter(None, (public, local, between)))
    return f": {scores}" if scores else ""


def _row(submission: "Submission | None", entry: "LedgerEntry | None") -> list[str]:
    """Return a line of the table: what Kaggle lists, or what only the ledger holds."""
    difference = entry.public_minus_local if entry else None
    compared = "" if difference is None else f"{difference:+.4f}"
    if submission is None:
        # At least one of the two is there.
        assert entry is not None
        return [
            entry.ref,
            entry.time,
            f"{entry.status} (in the ledger only)",
            entry.public_score,
            entry.local_score,
            compared,
            entry.kernel or entry.file,
            entry.message,
            entry.error,
        ]
    return [
        str(submission.ref),
        submission.date,
        submission.status,
        submission.public_score,
        entry.local_score if entry else "",
        compared,
        (entry.kernel or entry.file) if entry else submission.file,
        submission.message,
        submission.error,
    ]
