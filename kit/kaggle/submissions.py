"""Submissions that are there: Kaggle's list beside the ledger, and one followed to its score."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.kaggle import ledger
from kit.kaggle.client import Client
from kit.kaggle.errors import RefusedError, UnreachableError
from kit.kaggle.ledger import LedgerEntry
from kit.task import COMPETITION

CAUSES = {  # Kaggle's words, and what to do; source: its page on debugging submissions to code competitions
    "timeout": "The notebook ran longer than 9 hours on the hidden test. Push with fewer or smaller models.",
    "threw exception": "The notebook failed on the hidden test. It must not depend on the ids or the 3 rows seen here.",
    "exceeded allowed compute": "It used more memory or disk than allowed. Push with smaller models.",
    "csv not found": "The scoring run left no submission.csv. Look at the end of the notebook's log.",
    "scoring error": "Kaggle could not score the file: its rows, columns, ids or values. See `kit validate`.",
    "kaggle error": "Kaggle's own failure. Submit the same version again.",
}


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle has it; scores are text, '' until there is one."""

    ref: int
    status: str
    public_score: str
    private_score: str
    message: str
    file: str
    date: str
    error: str


def wait_for_score(
    client: Client,
    entry: LedgerEntry,
    *,
    poll_s: float = 60.0,
    timeout_s: float | None = None,
    book: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Follows a submission to its score and writes that to the ledger.

    Raises:
        RefusedError: it failed; the message says what Kaggle's reason means.
        UnreachableError: the time is over.
    """
    waited, last = 0.0, ""
    while True:
        body = {"ref": int(entry.ref)}
        answer = client.call(
            "competitions.get_submission", body, f"reading the status of submission {entry.ref}"
        )
        submission = _read(answer)
        if submission.status != last:
            say(f"submission {entry.ref}: {submission.status}")
            last = submission.status
        if submission.status != "PENDING":
            break
        if timeout_s is not None and waited >= timeout_s:
            raise UnreachableError(
                f"submission {entry.ref} is not scored after {waited / 60:.0f} minutes",
                "`kit submissions` shows it.",
            )
        client.patience.sleep(poll_s)
        waited += poll_s
    entry = _settled(entry, submission)
    ledger.record_submission(entry, book)
    if submission.status != "COMPLETE":
        raise RefusedError(
            f"submission {entry.ref} failed: {entry.error or 'Kaggle gives no reason'}",
            explain_submission(entry.error),
        )
    return entry


def list_submissions(
    client: Client, *, competition: str = COMPETITION, book: str | Path = ledger.LEDGER
) -> list[tuple[Submission | None, LedgerEntry | None]]:
    """Kaggle's submissions, newest first, each with its entry in the ledger, whose scores are brought up to date.

    After them come the ledger's entries that Kaggle does not list for this account, newest first.
    """
    known = {entry.ref: entry for entry in ledger.read_ledger(book)}
    rows: list[tuple[Submission | None, LedgerEntry | None]] = []
    for submission in newest_submission(client, competition):
        entry = known.pop(str(submission.ref), None)
        if entry is not None and _settled(entry, submission) != entry:
            entry = _settled(entry, submission)
            ledger.record_submission(entry, book)
        rows.append((submission, entry))
    return rows + [
        (None, entry) for entry in reversed(known.values()) if entry.competition == competition
    ]


def explain_submission(error: str) -> str:
    """What Kaggle's reason means, and what to do."""
    words = error.lower()
    meaning = next((text for cause, text in CAUSES.items() if cause in words), "")
    return meaning or "Look at the submission's page: https://www.kaggle.com/submissions."


def newest_submission(
    client: Client, competition: str, pages: int = 5, size: int = 100
) -> list[Submission]:
    """The newest submissions, newest first."""
    found: list[Submission] = []
    for page in range(1, pages + 1):
        body = {"competitionName": competition, "page": page, "pageSize": size}
        answer = client.call(
            "competitions.list_submissions", body, f"listing the submissions to {competition}"
        )
        new = [_read(s) for s in answer.submissions or []]
        found += [s for s in new if s.ref not in {f.ref for f in found}]
        if len(new) < size:
            break
    return found


def _read(answer: Any) -> Submission:
    return Submission(
        answer.ref,
        answer.status.name,
        answer.public_score or "",
        answer.private_score or "",
        answer.description or "",
        answer.file_name or "",
        f"{answer.date:%Y-%m-%d %H:%M}" if answer.date else "",
        answer.error_description or "",
    )


def _settled(entry: LedgerEntry, submission: Submission) -> LedgerEntry:
    return replace(
        entry,
        status=submission.status,
        public_score=submission.public_score,
        private_score=submission.private_score,
        error=submission.error,
    )
