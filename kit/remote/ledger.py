"""submissions/ledger.csv: every submission that was made, with what it was made of; a score is filled in later."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kit import atomic
from kit.errors import DataError

LEDGER = Path("submissions/ledger.csv")


@dataclass(frozen=True)
class Entry:
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


COLUMNS = tuple(f.name for f in fields(Entry))


def read(path: str | Path = LEDGER) -> list[Entry]:
    """The entries, oldest first; none where there is no file. Columns that others have added are left alone.

    Raises:
        DataError: it is not a ledger.
    """
    return [Entry(**{c: row.get(c) or "" for c in COLUMNS}) for row in _rows(Path(path))]


def record(entry: Entry, path: str | Path = LEDGER) -> None:
    """Adds an entry, or replaces the one of the same ref."""
    rows = _rows(Path(path))
    new = asdict(entry)
    at = next((i for i, row in enumerate(rows) if entry.ref and row.get("ref") == entry.ref), None)
    if at is None:
        rows.append(new)
    else:
        rows[at] |= new
    _write(rows, Path(path))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        rows, columns = list(reader), reader.fieldnames or []
    missing = [c for c in ("time", "ref", "message") if c not in columns]
    if missing:
        raise DataError(
            f"{path} is not a ledger: no column {', '.join(missing)}", "Move it away; kit begins a new one."
        )
    return rows


def _write(rows: Iterable[dict[str, str]], path: Path) -> None:
    rows = list(rows)
    more = [c for c in dict.fromkeys(c for row in rows for c in row) if c and c not in COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *more], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())
