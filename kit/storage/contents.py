"""Say what a file really holds where it cannot be what its name promises. Use `describe_impostor`,
and for CSV and Parquet files `refuse_other_format`.

A checkout without Git LFS leaves pointers in place of large files, a login page is saved under the
name of a download, and a copy that was interrupted is too short.
"""

import json
from pathlib import Path

from kit.errors import DataError

_START = 512

# A header of safetensors begins with its own length, in eight bytes.
_LENGTH = 8
_MAX_HEADER = 100_000_000

_GIT_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")

# The first bytes of files that people take for CSV.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def describe_impostor(path: Path) -> str:
    """Return what a file is instead of what its name promises, with the remedy; "" if nothing.

    Only the beginning and the length of the file are looked at. A file that cannot be read is left
    to whoever reads it next.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return ""

    if not start:
        return "is empty: download it again"
    if not start.strip(b"\0"):
        return "begins with zeros only: download or copy it again"
    impostor = _describe_text(start)
    if not impostor and path.suffix == ".safetensors":
        return _describe_safetensors(path, start)
    return impostor


def refuse_other_format(path: Path) -> None:
    """Raise DataError if a CSV or Parquet file is a pointer, a page, an archive or another format.

    A file that cannot be read, or is empty, is left to whoever reads it next.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return

    problem, _, hint = _describe_text(start).partition(": ")
    if problem:
        raise DataError(f"{path} {problem}", f"{hint[:1].upper()}{hint[1:]}.")
    found = [name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)]
    if found and path.suffix != ".parquet":
        raise DataError(
            f"{path}: this is {found[0]}, not CSV text in UTF-8",
            "Unpack it, or save it as CSV in UTF-8.",
        )


def missing_bytes(path: Path) -> int | None:
    """Return how many bytes a safetensors file lacks, None where its header cannot be read."""
    try:
        header = read_tensor_table(path)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        with path.open("rb") as file:
            data_start = _LENGTH + int.from_bytes(file.read(_LENGTH), "little")
        return max(0, data_start + max(ends, default=0) - path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def read_tensor_table(path: Path) -> dict[str, dict]:
    """Return the tensors that a safetensors file lists: `dtype`, `shape`, `data_offsets` by name.

    Raises:
        OSError, ValueError: it cannot be read, or does not begin as such a file does.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not 0 < length <= _MAX_HEADER:
            raise ValueError("no header of a safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def _describe_text(start: bytes) -> str:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_GIT_LFS):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it"
    if text.startswith(_PAGES):
        return "is a web page, perhaps of a login or an error: download it again"
    return ""


def _describe_safetensors(path: Path, start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a file of torch.save under another name: call it pytorch_model.bin"
    missing = missing_bytes(path)
    if missing is None:
        return "does not begin as a safetensors file does: download or copy it again"
    if missing:
        return f"is incomplete, {missing:,} bytes are missing: download or copy it again"
    return ""
