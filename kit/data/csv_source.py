"""A raw file as bytes: what kind of file it is, and the repairs that its bytes need before they are read as CSV."""

import os
from pathlib import Path

from kit.errors import DataError

FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark
PIECE = 1 << 20  # bytes read at a time


def require_file(path: str | Path) -> Path:
    """The path, if a file can be there.

    Raises:
        DataError: there is nothing, a directory, or a file that may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a CSV file", "Name the file in it.")
    if not path.exists():
        raise DataError(
            f"{path}: no such file",
            "Check the path; `kit download` fetches the competition's files, `kit sample` writes a sample of them.",
        )
    if not path.is_file():  # a pipe: a fault could not be looked up, nor the file hashed
        raise DataError(f"{path} is not a regular file", "Save it to a file first.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: not allowed to read it", "Change its permissions.")
    return path


def survey_csv(path: str | Path) -> dict[str, int]:
    """How often each repair of the file's bytes is due (see `raw.RawFile`), read piece by piece.

    Raises:
        DataError: the file is missing, empty, or of another kind.
    """
    path = require_file(path)
    repairs = {"nul_bytes": 0, "byte_order_mark": 0, "crlf_line_ends": 0}
    empty, before = True, b""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            if not before:
                kind = next(
                    (name for magic, name in FOREIGN.items() if piece.startswith(magic)), None
                )
                if kind:
                    problem = f"{path}: this is {kind}, not CSV text in UTF-8"
                    raise DataError(problem, "Unpack it, or save it as CSV in UTF-8.")
                repairs["byte_order_mark"] = int(piece.startswith(MARK))
            if b"\0" in piece:
                repairs["nul_bytes"] += piece.count(b"\0")
            if b"\r" in piece or before.endswith(b"\r"):
                repairs["crlf_line_ends"] += (before[-1:] + piece).count(b"\r\n")
            empty = empty and not piece.removeprefix(MARK).strip(b"\0 \t\r\n")
            before = piece
    if empty:
        raise DataError(
            f"{path}: the file is empty", "Fetch it again (`kit download`), or remove it."
        )
    return repairs


def load_csv(path: Path) -> bytes:
    """All of a file without byte order mark and NUL bytes: what faults are looked for in."""
    return path.read_bytes().removeprefix(MARK).replace(b"\0", b"")


def csv_head(path: Path) -> bytes:
    """The start of what `load` gives, long enough for any header."""
    with path.open("rb") as file:
        return file.read(PIECE).removeprefix(MARK).replace(b"\0", b"")


def quote_is_open_at_the_end(path: Path) -> bool:
    """Whether the last line has an odd number of quotes; only a hint, as a cell may hold line ends."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - PIECE))
        lines = file.read().rstrip(b"\0\r\n")
    return lines.count(b'"', lines.rfind(b"\n") + 1) % 2 == 1
