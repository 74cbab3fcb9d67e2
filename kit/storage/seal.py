"""Notice when a computed folder has changed since. Use `seal_folder`, `is_sealed`, `check_seal`.

Tokens, features and vectors are numbers without a checksum: a changed byte would only be other
numbers. A sealed folder has a list of its files' hashes. To read 230 MB, the tokens of 57,477 rows,
and compare their SHA-256 takes 0.3 s.
"""

import json
from pathlib import Path

from kit.errors import DataError
from kit.storage.atomic import file_sha256, read_text_file, write_json

SEAL_FILE = "sha256.json"

DELETE_HINT = "Delete the folder (it is only a cache) and run the command again."


def seal_folder(folder: Path) -> None:
    """Write the list of the files in `folder`; call it last, inside `atomic_folder`."""
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    write_json(folder / SEAL_FILE, digests)


def is_sealed(folder: Path) -> bool:
    """Return whether the folder has its list; kit before 0.2.0 wrote none."""
    return (folder / SEAL_FILE).is_file()


def check_seal(folder: Path) -> None:
    """Raise DataError if a file of a sealed folder is missing, or is not as it was written."""
    try:
        digests = json.loads(read_text_file(folder / SEAL_FILE))
        changed = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder}: cannot read {SEAL_FILE}: {error}", DELETE_HINT) from error

    if changed:
        raise DataError(
            f"{folder}: the cached {changed[0]} is missing or has changed since it was written",
            DELETE_HINT,
        )


def _digest(file: Path) -> str | None:
    """Return a file's SHA-256, None if it is not there."""
    return file_sha256(file) if file.is_file() else None
