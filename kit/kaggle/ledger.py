"""Record every submission in submissions/ledger.csv, with what it was made of and how it scored.

Use `read_ledger` and `record_submission`.
"""

import csv
import io
import re
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kit.errors import DataError, KitError
from kit.storage import atomic
from kit.storage.atomic import read_text_file
from kit.storage.lock import hold_lock

LEDGER = Path("submissions/ledger.csv")

# What only Kaggle knows, and only after the entry was made.
_FROM_KAGGLE = ("status", "public_score", "private_score", "error")


@dataclass(frozen=True)
class LedgerEntry:
    """One submission. Every value is the text in the file.

    Args:
        time: when it was made, in UTC.
        ref: Kaggle's number for it.
        kernel: owner/slug/version, "" for a file.
        file: the file submitted, for a kernel the one that it left.
        sha256: of that file, as the kernel's visible run left it.
        runs: the refs that it is blended from, with spaces between them.
        weights: their weights, in the same order.
        local_score: the log loss on rows that the models have not seen, as estimated here.
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

    @property
    def public_minus_local(self) -> float | None:
        """How much worse the public score is than the local one; None where one is missing."""
        try:
            return float(self.public_score) - float(self.local_score)
        except ValueError:
            return None


COLUMNS = tuple(field.name for field in fields(LedgerEntry))


def escape_cell(text: str) -> str:
    """Return a text for one cell, with lone carriage returns and NUL characters escaped.

    The csv module does not quote a lone carriage return, and reads it as the end of a row.
    """
    return re.sub(r"\r(?!\n)|\0", lambda found: repr(found[0])[1:-1], text)


def read_ledger(path: str | Path = LEDGER) -> list[LedgerEntry]:
    """Return the entries, oldest first; none if there is no file. Unknown columns are ignored.

    A row without a competition and a number is the rest of a message that an older kit broke in
    two, and is left out.

    Raises:
        DataError: it is not a ledger.
    """
    entries = [
        LedgerEntry(**{column: row.get(column) or "" for column in COLUMNS})
        for row in _read_rows(Path(path))
    ]
    return [entry for entry in entries if entry.competition or entry.ref.isdecimal()]


def record_submission(entry: LedgerEntry, path: str | Path = LEDGER) -> None:
    """Add an entry, or update the one with its ref.

    An update changes only what Kaggle reports later, because people edit the rest by hand.

    Raises:
        DataError: the file is not a ledger.
        KitError, OSError: it cannot be written.
    """
    path = Path(path)
    new = asdict(entry)

    # Without the lock one of two commands would lose the other's entry.
    with hold_lock(path.parent, path.name, wait=True):
        rows = _read_rows(path)
        same = [row for row in rows if entry.ref and row.get("ref") == entry.ref]
        if same:
            same[0].update({column: new[column] for column in _FROM_KAGGLE})
        else:
            rows.append(new)
        _write_rows(rows, path)


def require_writable_ledger(path: str | Path) -> None:
    """Raise if a submission could not be recorded. Called before one is made and counts.

    Raises:
        DataError: the file is not a ledger.
        KitError: it is a directory, or its folder cannot be written.
    """
    path = Path(path)
    hint = "Fix that, or name another one with --ledger."
    if path.is_dir():
        raise KitError(f"the ledger {path} is a directory", hint)
    try:
        with hold_lock(path.parent, path.name, wait=True):
            _read_rows(path)
            # Creating a file can succeed on a full disk; writing to it fails.
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(4096))
    except OSError as error:
        raise KitError(
            f"the ledger {path} cannot be written: {error.strerror or error}", hint
        ) from error


def _read_rows(path: Path) -> list[dict[str, str]]:
    hint = "Move it away; kit begins a new one."
    if not path.exists():
        return []
    if path.is_dir():
        raise KitError(f"the ledger {path} is a directory", hint)
    try:
        text = read_text_file(path, newline="")
        # A lone carriage return was written by an older kit, unless it ends all rows.
        if "\n" in text:
            text = escape_cell(text)
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="")
        rows = list(reader)
        columns = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a ledger: {error}", hint) from error

    missing = [column for column in ("time", "ref", "message") if column not in columns]
    if missing:
        raise DataError(f"{path} is not a ledger: no column {', '.join(missing)}", hint)
    return rows


def _write_rows(rows: list[dict[str, str]], path: Path) -> None:
    # Columns that a person has added follow ours. The key "" holds values beyond the header.
    found = dict.fromkeys(column for row in rows for column in row)
    added = [column for column in found if column and column not in COLUMNS]

    text = io.StringIO()
    writer = csv.DictWriter(
        text, [*COLUMNS, *added], restval="", extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({column: escape_cell(cell) for column, cell in row.items() if column})
    atomic.write_text(path, text.getvalue())
