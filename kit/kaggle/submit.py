"""Submit a kernel version or a file, once, and record it in the ledger.

Use `submit_kernel` and `submit_file`. Kaggle counts failed submissions against the day's limit, so
what would fail is refused here before anything is sent.
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
from kit.kaggle.local_score import estimate_local_score
from kit.kaggle.outputs import download_output, output_addresses
from kit.kaggle.retry import require_known_effect
from kit.kaggle.transfer import upload_file
from kit.storage.atomic import file_sha256
from kit.task import COMPETITION

SUBMISSION = "submission.csv"


def check_submission(
    kernel: str | None, file: str | Path | None, sample: str | Path | None
) -> None:
    """Check the arguments of a submission before a credential is read or the network is used.

    Raises:
        KaggleError: `kernel` does not name a kernel.
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
    sample: str | Path | None = None,
    local_score: str = "",
    force: bool = False,
    runs: str | Path = "runs",
    data: str | Path = "data/processed",
    ledger_path: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Submit a kernel version and record it in the ledger.

    Checked before: the rules are accepted, a submission is left today, the version is complete, has
    the competition attached and internet off, and its submission.csv is valid.

    Args:
        kernel: OWNER/SLUG/VERSION; without VERSION the latest, without OWNER of this account.
        message: Kaggle's list and the ledger keep it.
        sample: a file with the ids that submission.csv must have.
        local_score: for the ledger; "" takes the one that the kernel was pushed with, or the loss
            of its runs on this machine.
        force: submit a version that the ledger has already.
        runs, data: folders of the runs and of the rows, for the local score.

    Raises:
        KaggleError, KitError: the submission would fail, and why.
    """
    message = _clean_message(message)
    ref = KernelRef.parse(kernel, client.owner() if "/" not in kernel else "")
    stored = look_up_kernel(client, ref)
    if not ref.version:
        ref = replace(ref, version=stored.latest)

    if not force:
        _refuse_repetition(ref, competition, ledger_path)
    _require_open(client, competition, files=False, say=say)
    quota.tell_quota(client, say)
    # With a timeout of 0 this only raises unless the version is complete.
    wait_for_kernel(client, ref, settle_s=0.0, timeout_s=0.0)
    if stored.internet:
        raise RefusedError(
            f"{ref} runs with internet, which this competition does not allow",
            "Push it with `kit kernels push infer`, which turns it off.",
        )
    if stored.competitions and competition not in stored.competitions:
        raise RefusedError(
            f"{ref} does not have {competition} attached", "Push it with `kit kernels push infer`."
        )
    digest = _check_output(client, ref, sample, say)

    # The job in the notebook says what the prediction is blended from.
    job = notebook.job_of(stored.source)
    members = job.get("sources", [])
    local_score = local_score or job.get("local_score", "")
    if not local_score and (estimate := estimate_local_score(job, runs, data)) is not None:
        local_score = f"{estimate:.5f}"
    body = {
        "competitionName": competition,
        "kernelOwner": ref.owner,
        "kernelSlug": ref.slug,
        "kernelVersion": ref.version,
        "fileName": SUBMISSION,
        "submissionDescription": message,
    }
    entry = LedgerEntry(
        time=_now(),
        ref="",
        competition=competition,
        kernel=str(ref),
        file=SUBMISSION,
        sha256=digest,
        runs=" ".join(member["ref"] for member in members),
        weights=" ".join(f"{member['weight']:g}" for member in members),
        local_score=local_score,
        message=message,
    )
    return _send(client, "competitions.create_code_submission", body, entry, ledger_path, say)


def submit_file(
    client: Client,
    file: str | Path,
    message: str,
    *,
    competition: str = COMPETITION,
    sample: str | Path | None = None,
    local_score: str = "",
    ledger_path: str | Path = ledger.LEDGER,
    say: Callable[[str], None] = lambda _: None,
) -> LedgerEntry:
    """Upload and submit a file, for competitions that take files, and record it in the ledger.

    Args:
        message: Kaggle's list and the ledger keep it.
        sample: a file with the ids that `file` must have.
        local_score: for the ledger.

    Raises:
        RefusedError: this competition takes notebooks only.
        KaggleError, KitError: the submission would fail, and why.
    """
    message = _clean_message(message)
    file = Path(file)
    _require_valid(file, sample)
    _require_open(client, competition, files=True, say=say)

    stat = file.stat()
    action = f"uploading {file.name}"
    start = {
        "competitionName": competition,
        "fileName": file.name,
        "contentLength": stat.st_size,
        "lastModifiedEpochSeconds": int(stat.st_mtime),
    }
    token = upload_file(
        client,
        lambda: client.call("competitions.start_submission_upload", start, action),
        file,
        action,
    )

    body = {
        "competitionName": competition,
        "blobFileTokens": token,
        "submissionDescription": message,
    }
    entry = LedgerEntry(
        time=_now(),
        ref="",
        competition=competition,
        file=str(file),
        sha256=file_sha256(file),
        local_score=local_score,
        message=message,
    )
    return _send(client, "competitions.create_submission", body, entry, ledger_path, say)


def _refuse_repetition(ref: KernelRef, competition: str, ledger_path: str | Path) -> None:
    """Raise RefusedError if the ledger has this version already, since the score would be equal.

    Raises:
        DataError, KitError: the ledger cannot be used.
    """
    ledger.require_writable_ledger(ledger_path)
    for entry in ledger.read_ledger(ledger_path):
        if (entry.kernel, entry.competition) == (str(ref), competition):
            score = f", public score {entry.public_score}" if entry.public_score else ""
            raise RefusedError(
                f"{ref} was submitted before: {entry.ref}, {entry.status}{score}",
                "Push a new version, or add --force to submit this one again.",
            )


def _clean_message(message: str) -> str:
    """Return a message without blanks around it, with control characters escaped.

    They would garble Kaggle's list and every table of the ledger.
    """
    lines = message.replace("\r\n", "\n").strip()
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in lines)


def _require_open(
    client: Client, competition: str, *, files: bool, say: Callable[[str], None]
) -> None:
    """Raise unless the competition takes this kind of submission from this account today."""
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
    # An account that has never submitted gets zeros for both, so 0 left counts only after one.
    if limits.left <= 0 < limits.today:
        raise RefusedError(
            f"no submission is left today for {competition}", "The count begins again at 00:00 UTC."
        )


def _check_output(
    client: Client, ref: KernelRef, sample: str | Path | None, say: Callable[[str], None]
) -> str:
    """Validate the version's submission.csv and return its SHA-256."""
    if SUBMISSION not in output_addresses(client, ref):
        raise RefusedError(f"{ref} left no {SUBMISSION}", f"`kit kernels logs {ref}` shows why.")

    # `download_output` replaces its folder as a whole, so it gets one that does not exist yet.
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        folder = Path(scratch) / "output"
        download_output(client, ref, folder, only=lambda name: name == SUBMISSION)
        _require_valid(folder / SUBMISSION, sample)
        say(f"{ref}: its {SUBMISSION} is valid")
        return file_sha256(folder / SUBMISSION)


def _require_valid(file: Path, sample: str | Path | None) -> None:
    if not file.is_file():
        raise DataError(
            f"{file}: no such file", "Check the path, or run the command that makes it."
        )
    report = validate_submission(file, sample)
    if not report.ok:
        problems = "\n".join(f"- {problem}" for problem in report.problems[:8])
        raise DataError(
            f"{file.name} would not be scored:\n{problems}", f"`kit validate {file}` shows all."
        )


def _send(
    client: Client,
    method: str,
    body: dict[str, Any],
    entry: LedgerEntry,
    ledger_path: str | Path,
    say: Callable[[str], None],
) -> LedgerEntry:
    """Make the submission, once, and record it.

    Returns:
        The entry with Kaggle's number.
    """
    # Afterwards it is too late to find that the submission cannot be recorded.
    ledger.require_writable_ledger(ledger_path)
    earlier = {
        submission.ref for submission in submissions.newest_submissions(client, entry.competition)
    }

    def find_submission() -> submissions.Submission | None:
        """Return the submission that was not there before and has our message."""
        for submission in submissions.newest_submissions(client, entry.competition):
            if submission.ref not in earlier and submission.message == entry.message:
                return submission
        return None

    # An answer without a number says neither yes nor no, so the list decides.
    action = f"submitting to {entry.competition}"
    answer = client.change(method, body, action, find_submission)
    made = answer if answer.ref else require_known_effect(find_submission, action)
    if made is None:
        raise RefusedError(
            f"Kaggle did not take the submission: {answer.message or 'no reason given'}"
        )

    entry = replace(entry, ref=str(made.ref))
    try:
        ledger.record_submission(entry, ledger_path)
    except (OSError, KitError) as error:
        reason = error.problem if isinstance(error, KitError) else error.strerror
        raise KitError(
            f"submission {entry.ref} was made, but {ledger_path} cannot be written: {reason}",
            "Do not submit again; `kit submissions` shows it.",
        ) from error
    say(f"submission {entry.ref} was made and recorded in {ledger_path}")
    return entry


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
