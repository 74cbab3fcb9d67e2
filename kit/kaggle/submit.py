"""A submission: refused here where Kaggle would count it and fail it, sent once, written down, followed to its score.

Kaggle counts failed submissions against the day's limit, so everything that can be known before is checked before.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.errors import DataError, KitError
from kit.evaluation.validate import read_sample_ids, validate_submission
from kit.kaggle import ledger, notebook, quota, submissions
from kit.kaggle.client import Client
from kit.kaggle.errors import RefusedError, RulesError
from kit.kaggle.kernels import KernelRef, look_up_kernel, wait_for_kernel
from kit.kaggle.ledger import LedgerEntry
from kit.kaggle.outputs import download_output, output_addresses
from kit.kaggle.retry import poll_once
from kit.kaggle.transfer import upload_file
from kit.storage.atomic import file_sha256
from kit.task import COMPETITION

SUBMISSION = "submission.csv"


def check_submission(
    kernel: str | None, file: str | Path | None, sample: str | Path | None
) -> None:
    """Raises where the arguments themselves are wrong, before a credential is read and anybody is asked.

    Raises:
        KaggleError: `kernel` names none.
        DataError: `file` would not be scored, or `sample` cannot be used.
    """
    if kernel is not None:
        KernelRef.parse(kernel, "you")
    if file is not None:
        _require_valid(Path(file), sample)
    elif sample is not None:
        read_sample_ids(sample)


def submit_kernel(
    client: Client,
    kernel: str,
    message: str,
    *,
    competition: str = COMPETITION,
    test: str | Path | None = None,
    local_score: str = "",
    book: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Submits a version of a kernel (the latest, if none is named) and writes it to the ledger.

    Before that: the rules are accepted, a submission is left today, the version is complete, has the competition
    attached and internet off, and its submission.csv is valid (with the ids of `test`, if given).

    Raises:
        KaggleError, KitError: it would fail, and why.
    """
    ref = KernelRef.parse(kernel, client.owner() if "/" not in kernel else "")
    stored = look_up_kernel(client, ref)
    ref = ref if ref.version else replace(ref, version=stored.latest)
    _require_place(client, competition, files=False, say=say)
    quota.tell_quota(client, say)
    wait_for_kernel(client, ref, settle_s=0.0, timeout_s=0.0)
    if stored.internet:
        raise RefusedError(
            f"{ref} runs with internet, which this competition does not take",
            "Push it with `kit kernels push infer`, which turns it off.",
        )
    if stored.competitions and competition not in stored.competitions:
        raise RefusedError(
            f"{ref} does not have {competition} attached", "Push it with `kit kernels push infer`."
        )
    digest = _check_output(client, ref, test, say)
    job = notebook.job_of(stored.source)
    members = job.get("sources", [])
    body = {
        "competitionName": competition,
        "kernelOwner": ref.owner,
        "kernelSlug": ref.slug,
        "kernelVersion": ref.version,
        "fileName": SUBMISSION,
        "submissionDescription": message,
    }
    entry = LedgerEntry(
        _now(),
        "",
        competition,
        kernel=str(ref),
        file=SUBMISSION,
        sha256=digest,
        runs=" ".join(m["ref"] for m in members),
        weights=" ".join(f"{m['weight']:g}" for m in members),
        local_score=local_score or job.get("local_score", ""),
        message=message,
    )
    return _send(client, "competitions.create_code_submission", body, entry, book, say)


def submit_file(
    client: Client,
    file: str | Path,
    message: str,
    *,
    competition: str = COMPETITION,
    sample: str | Path | None = None,
    local_score: str = "",
    book: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Uploads and submits a file, for competitions that take files, and writes it to the ledger.

    Raises:
        RefusedError: this competition takes notebooks only.
        KaggleError, KitError: it would fail, and why.
    """
    file = Path(file)
    _require_valid(file, sample)
    _require_place(client, competition, files=True, say=say)
    stat, doing = file.stat(), f"uploading {file.name}"
    start = {"competitionName": competition, "fileName": file.name, "contentLength": stat.st_size}
    start |= {"lastModifiedEpochSeconds": int(stat.st_mtime)}
    opened = client.call("competitions.start_submission_upload", start, doing)
    upload_file(client, opened.create_url, file, doing)
    body = {
        "competitionName": competition,
        "blobFileTokens": opened.token,
        "submissionDescription": message,
    }
    digest = file_sha256(file)
    entry = LedgerEntry(
        _now(),
        "",
        competition,
        file=str(file),
        sha256=digest,
        local_score=local_score,
        message=message,
    )
    return _send(client, "competitions.create_submission", body, entry, book, say)


def _require_place(
    client: Client, competition: str, *, files: bool, say: Callable[[str], None]
) -> None:
    """Raises unless the competition takes this kind of submission from this account today."""
    page = f"https://www.kaggle.com/competitions/{competition}"
    rules = quota.read_rules(client, competition)
    if files and rules.notebooks_only:
        raise RefusedError(
            f"{competition} takes notebooks only, no files",
            "`kit kernels push infer --runs …`, then `kit submit --kernel OWNER/SLUG -m TEXT`.",
        )
    if not rules.joined:
        raise RulesError(
            f"this account has not joined {competition}", f"Open {page}/rules and accept them."
        )
    if rules.closed:
        raise RefusedError(f"{competition} takes no more submissions", f"See {page}.")
    limits = quota.read_limits(client, competition)
    say(str(limits))
    if limits.left <= 0 < limits.today:  # all zero is what an account without a submission yet gets
        raise RefusedError(
            f"no submission is left today for {competition}", "The count begins again at 00:00 UTC."
        )


def _check_output(
    client: Client, ref: KernelRef, test: str | Path | None, say: Callable[[str], None]
) -> str:
    """The SHA-256 of the version's submission.csv, once it was found valid."""
    if SUBMISSION not in output_addresses(client, ref):
        raise RefusedError(f"{ref} left no {SUBMISSION}", f"`kit kernels logs {ref}` shows why.")
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        folder = Path(scratch) / "output"
        download_output(client, ref, folder, only=lambda name: name == SUBMISSION)
        _require_valid(folder / SUBMISSION, test)
        say(f"{ref}: its {SUBMISSION} is valid")
        return file_sha256(folder / SUBMISSION)


def _require_valid(file: Path, sample: str | Path | None) -> None:
    if not file.is_file():
        raise DataError(
            f"{file}: no such file", "Check the path, or run the command that makes it."
        )
    report = validate_submission(file, sample)
    if not report.ok:
        listed = "\n".join(f"- {problem}" for problem in report.problems[:8])
        raise DataError(
            f"{file.name} would not be scored:\n{listed}", f"`kit validate {file}` shows all of it."
        )


def _send(
    client: Client,
    method: str,
    body: dict[str, Any],
    entry: LedgerEntry,
    book: str | Path,
    say: Callable[[str], None],
) -> LedgerEntry:
    """Makes the submission, once, and writes it down."""
    ledger.require_writable_ledger(book)
    before = {s.ref for s in submissions.newest_submission(client, entry.competition)}

    def happened() -> submissions.Submission | None:
        new = [
            s
            for s in submissions.newest_submission(client, entry.competition)
            if s.ref not in before
        ]
        return next((s for s in new if s.message == entry.message), None)

    doing = f"submitting to {entry.competition}"
    answer = client.change(method, body, doing, happened)
    made = answer if answer.ref else poll_once(happened, doing)
    if made is None:
        raise RefusedError(
            f"Kaggle did not take the submission: {answer.message or 'no reason given'}"
        )
    entry = replace(entry, ref=str(made.ref))
    try:
        ledger.record_submission(entry, book)
    except (OSError, KitError) as error:
        why = error.problem if isinstance(error, KitError) else error.strerror
        raise KitError(
            f"submission {entry.ref} is in, but {book} cannot be written: {why}",
            "Do not submit again; `kit submissions` shows it.",
        ) from error
    say(f"submission {entry.ref} is in; written to {book}")
    return entry


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
