"""submissions/ledger.csv: every submission that was made, with what it was made of; a score is filled in later."""

import csv
import io
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kit.errors import DataError, KitError
from kit.storage import atomic
from kit.storage.lock import hold_lock

LEDGER = Path("submissions/ledger.csv")
TOLD = ("status", "public_score", "private_score", "error")  # by Kaggle, after the entry was made


@dataclass(frozen=True)
class LedgerEntry:
    """One submission; all as text, as it stands in the file.

    time: UTC. ref: Kaggle's number of it. kernel: owner/slug/version, '' for a file. file, sha256: of the file
    submitted, for a kernel of its visible run. runs, weights: what it is blended from.
    """

    time: str
    ref: str
    competition: str
    kernel: str = ""
    file: str = ""
    sha256: str = ""
    runs: str = ""
    weights: str = ""
    local_score: str = ""
    status: str = "PENDING"
    public_score: str = ""
    private_score: str = ""
    message: str = ""
    error: str = ""


COLUMNS = tuple(f.name for f in fields(LedgerEntry))


def read_ledger(path: str | Path = LEDGER) -> list[LedgerEntry]:
    """The entries, oldest first; none where there is no file. Columns that others have added are left alone.

    Raises:
        DataError: it is not a ledger.
    """
    return [LedgerEntry(**{c: row.get(c) or "" for c in COLUMNS}) for row in _rows(Path(path))]


def record_submission(entry: LedgerEntry, path: str | Path = LEDGER) -> None:
    """Adds an entry; of one that is there, by its ref, only what Kaggle tells later is changed: people edit the rest.

    Raises:
        DataError: the file is not a ledger.
        KitError, OSError: it cannot be written.
    """
    path, new = Path(path), asdict(entry)
    with hold_lock(
        path.parent, path.name, wait=True
    ):  # else one of two commands would lose the other's entry
        rows = _rows(path)
        at = next(
            (i for i, row in enumerate(rows) if entry.ref and row.get("ref") == entry.ref), None
        )
        if at is None:
            rows.append(new)
        else:
            rows[at] |= {column: new[column] for column in TOLD}
        _write(rows, path)


def require_writable_ledger(path: str | Path) -> None:
    """Finds out, before a submission counts, whether it can be written down.

    Raises:
        DataError: the file is not a ledger.
        KitError: it is a directory, or nothing can be written beside it.
    """
    path, hint = Path(path), "Mend that, or name another one with --ledger."
    if path.is_dir():
        raise KitError(f"the ledger {path} is a directory", hint)
    try:
        with hold_lock(path.parent, path.name, wait=True):
            _rows(path)
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(4096))
    except OSError as error:
        raise KitError(
            f"the ledger {path} cannot be written: {error.strerror or error}", hint
        ) from error


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a ledger: {error}", "Move it away; kit begins a new one."
        ) from error
    missing = [c for c in ("time", "ref", "message") if c not in columns]
    if missing:
        raise DataError(
            f"{path} is not a ledger: no column {', '.join(missing)}",
            "Move it away; kit begins a new one.",
        )
    return rows


def _write(rows: Iterable[dict[str, str]], path: Path) -> None:
    rows = list(rows)
    more = [c for c in dict.fromkeys(c for row in rows for c in row) if c and c not in COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [*COLUMNS, *more], restval="", extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())
