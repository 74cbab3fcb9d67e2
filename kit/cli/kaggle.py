"""Commands about the competition on Kaggle: download, submit, submissions."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli import options, show

if TYPE_CHECKING:
    from kit.kaggle.client import Client
    from kit.kaggle.ledger import LedgerEntry
    from kit.kaggle.submissions import Submission

BOOK = Path("submissions/ledger.csv")
ledger_file = click.option(
    "--ledger", type=options.FILE, default=BOOK, show_default=True, help="The ledger."
)


def connect(attempts: int = 6) -> "Client":
    """Kaggle with the credential that is found here; repeated calls are told as they happen.

    A wait of hours takes more attempts than a single command: 40 outlive half an hour without a
    network.
    """
    from kit.kaggle.client import Client
    from kit.kaggle.retry import RetryPolicy

    return Client(patience=RetryPolicy(attempts=attempts, say=show.note))


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
def download(out: Path, competition: str, force: bool, as_json: bool) -> None:
    """Download the competition's files, verified and unpacked.

    \b
    Example:  kit download --out data/raw
    """
    from kit.kaggle.download import download_competition as run

    with connect() as client, show.transferring(f"download {competition}") as progress:
        result = run(
            client, out, competition=competition, force=force, say=show.note, progress=progress
        )
    for warning in result.warnings:
        show.note(f"Warning: {warning}")
    if as_json:
        return show.json_out({**dataclasses.asdict(result), "folder": str(result.folder)})
    show.table(str(out), ["file", "bytes"], list(result.sizes.items()))
    if result.train_sha256:
        show.note(f"train.csv has the SHA-256 {result.train_sha256}")
    show.note(f"Next: kit preprocess --raw {out}")


@click.command()
@click.argument("file", required=False, type=options.FILE)
@click.option(
    "--kernel",
    metavar="OWNER/SLUG[/VERSION]",
    help="A finished inference kernel; the latest version.",
)
@click.option(
    "-m", "--message", required=True, help="What this submission is; Kaggle and the ledger keep it."
)
@click.option("--wait", "follow", is_flag=True, help="Follow it to its score.")
@click.option(
    "--sample",
    type=options.FILE,
    help="A file with the ids it must have, such as sample_submission.csv.",
)
@options.local_score
@options.competition
@ledger_file
@options.as_json
def submit(
    file: Path | None,
    kernel: str | None,
    message: str,
    follow: bool,
    sample: Path | None,
    local_score: str,
    competition: str,
    ledger: Path,
    as_json: bool,
) -> None:
    """Submit a kernel's version, or a FILE where a competition takes files.

    What would fail is refused before it counts; what was sent is in the ledger.

    \b
    Example:  kit submit --kernel kit-infer -m "two encoders, mean" --wait
    """
    if (file is None) == (kernel is None):
        raise click.UsageError(
            "Give --kernel OWNER/SLUG, or a FILE for competitions that take files."
        )
    from kit.kaggle.submissions import wait_for_score
    from kit.kaggle.submit import check_submission, submit_file, submit_kernel

    check_submission(kernel, file, sample)
    common = {
        "competition": competition,
        "local_score": local_score,
        "book": ledger,
        "say": show.note,
    }
    with connect() as client:
        if kernel is not None:
            entry = submit_kernel(client, kernel, message, test=sample, **common)
        else:
            entry = submit_file(client, file, message, sample=sample, **common)
    if follow:
        with connect(attempts=40) as client:
            entry = wait_for_score(client, entry, book=ledger, say=show.note)
    if as_json:
        return show.json_out(dataclasses.asdict(entry))
    score = f": public score {entry.public_score}" if entry.public_score else ""
    click.echo(f"submission {entry.ref} {entry.status}{score}")
    if not follow:
        show.note(
            "Next: kit submissions, in some hours: Kaggle runs the notebook again on the hidden test set"
        )


@click.command()
@options.competition
@ledger_file
@options.as_json
def submissions(competition: str, ledger: Path, as_json: bool) -> None:
    """List the submissions: Kaggle's scores beside the ledger's notes.

    \b
    Example:  kit submissions
    """
    from kit.kaggle.submissions import list_submissions as list_them

    with connect() as client:
        pairs = list_them(client, competition=competition, book=ledger)
    if as_json:
        rows = [
            {"kaggle": s and dataclasses.asdict(s), "ledger": e and dataclasses.asdict(e)}
            for s, e in pairs
        ]
        return show.json_out(rows)
    columns = ["ref", "date", "status", "public", "local", "kernel or file", "message", "error"]
    show.table(competition, columns, [_row(*pair) for pair in pairs])
    if not pairs:
        show.note(
            'None yet. Next: kit submit --kernel kit-infer -m "…", once an inference kernel is complete'
        )


def _row(submission: "Submission | None", entry: "LedgerEntry | None") -> list[str]:
    """A line of the table: Kaggle's word where it has one, else the ledger's."""
    best = submission or entry
    date = submission.date if submission else entry.time
    local, source = (
        (entry.local_score, entry.kernel or entry.file) if entry else ("", submission.file)
    )
    status = best.status if submission else f"{best.status} (in the ledger only)"
    return [str(best.ref), date, status, best.public_score, local, source, best.message, best.error]
