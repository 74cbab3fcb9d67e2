"""List an account's submissions with their ledger entries, and wait for the score of one.

Use `list_submissions` and `wait_for_score`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.kaggle import ledger
from kit.kaggle.client import Client
from kit.kaggle.errors import RefusedError, UnreachableError
from kit.kaggle.ledger import LedgerEntry
from kit.task import COMPETITION

# Kaggle's reasons, and what to do. Source: its page on debugging submissions to code competitions.
_REASONS = {
    "timeout": "The notebook ran longer than 9 hours on the hidden test set. "
    "Push with fewer or smaller models.",
    "threw exception": "The notebook failed on the hidden test set. "
    "It must not depend on the ids or on the 3 rows seen here.",
    "exceeded allowed compute": "It used more memory or disk than allowed. "
    "Push with smaller models.",
    "csv not found": "The scoring run left no submission.csv. "
    "Look at the end of the notebook's log.",
    "scoring error": "Kaggle could not score the file: its rows, columns, ids or values. "
    "See `kit validate`.",
    "kaggle error": "Kaggle itself failed. Submit the same version again, with --force.",
}


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle lists it. Scores are text, "" until there is one."""

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
    ledger_path: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Wait until a submission is scored, and write its score to the ledger.

    Returns:
        The entry with its score.

    Raises:
        RefusedError: the submission failed. The message explains Kaggle's reason.
        UnreachableError: there is no score after `timeout_s`.
    """
    action = f"reading the status of submission {entry.ref}"
    waited_s = 0.0
    last_status = ""
    while True:
        answer = client.call("competitions.get_submission", {"ref": int(entry.ref)}, action)
        submission = _submission(answer)
        if submission.status != last_status:
            say(f"submission {entry.ref}: {submission.status}")
            last_status = submission.status
        if submission.status != "PENDING":
            break
        if timeout_s is not None and waited_s >= timeout_s:
            raise UnreachableError(
                f"submission {entry.ref} is not scored after {waited_s / 60:.0f} minutes",
                "`kit submissions` shows it.",
            )
        client.patience.sleep(poll_s)
        waited_s += poll_s

    # A failure is recorded as well: it counts against the day's limit.
    entry = _with_score(entry, submission)
    ledger.record_submission(entry, ledger_path)
    if submission.status != "COMPLETE":
        raise RefusedError(
            f"submission {entry.ref} failed: {entry.error or 'Kaggle gives no reason'}",
            _explain_failure(entry.error),
        )
    return entry


def list_submissions(
    client: Client, *, competition: str = COMPETITION, ledger_path: str | Path = ledger.LEDGER
) -> list[tuple[Submission | None, LedgerEntry | None]]:
    """Return Kaggle's submissions with their ledger entries, newest first.

    Scores that are new are written to the ledger. At the end come the ledger's entries that Kaggle
    does not list for this account, newest first.
    """
    entries = {entry.ref: entry for entry in ledger.read_ledger(ledger_path)}
    pairs: list[tuple[Submission | None, LedgerEntry | None]] = []
    for submission in newest_submissions(client, competition):
        entry = entries.pop(str(submission.ref), None)
        if entry is not None and _with_score(entry, submission) != entry:
            entry = _with_score(entry, submission)
            ledger.record_submission(entry, ledger_path)
        pairs.append((submission, entry))

    unlisted = [entry for entry in entries.values() if entry.competition == competition]
    return pairs + [(None, entry) for entry in reversed(unlisted)]


def newest_submissions(
    client: Client, competition: str, pages: int = 5, page_size: int = 100
) -> list[Submission]:
    """Return the newest submissions, newest first, from at most `pages` pages of Kaggle's list."""
    found: dict[int, Submission] = {}
    for page in range(1, pages + 1):
        body = {"competitionName": competition, "page": page, "pageSize": page_size}
        action = f"listing the submissions to {competition}"
        answer = client.call("competitions.list_submissions", body, action)
        submissions = [_submission(item) for item in answer.submissions or []]

        # A submission made in the meantime moves the others on, so one may be on two pages.
        for submission in submissions:
            found.setdefault(submission.ref, submission)
        if len(submissions) < page_size:
            break
    return list(found.values())


def _explain_failure(error: str) -> str:
    """Return what Kaggle's reason means and what to do."""
    for reason, meaning in _REASONS.items():
        if reason in error.lower():
            return meaning
    return "Look at the submission's page: https://www.kaggle.com/submissions."


def _submission(answer: Any) -> Submission:
    """Return the submission in an object of `kagglesdk`."""
    return Submission(
        ref=answer.ref,
        status=answer.status.name,
        public_score=answer.public_score or "",
        private_score=answer.private_score or "",
        message=answer.description or "",
        file=answer.file_name or "",
        date=f"{answer.date:%Y-%m-%d %H:%M}" if answer.date else "",
        error=ledger.escape_cell(answer.error_description or ""),
    )


def _with_score(entry: LedgerEntry, submission: Submission) -> LedgerEntry:
    return replace(
        entry,
        status=submission.status,
        public_score=submission.public_score,
        private_score=submission.private_score,
        error=submission.error,
    )
