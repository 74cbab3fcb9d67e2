"""Write fitted calibrations and blends as JSON, and read such files back with every value checked.

Users may edit these files, so nothing in them is trusted.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.errors import DataError
from kit.storage.atomic import read_text_file, write_json

FORMAT = 1

# The command that writes and applies each kind of file.
COMMANDS = {"calibration": "kit calibrate", "blend": "kit ensemble"}


def write_fitted(path: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write `content` with its kind and the format number, atomically."""
    write_json(path, {"kit": kind, "format": FORMAT, **content})


def read_fitted(path: str | Path, kind: str) -> dict[str, Any]:
    """Return the content of a file that `write_fitted` wrote for this kind.

    Raises:
        DataError: the file is missing, not JSON, or of another kind or format.
    """
    path = Path(path)
    hint = f"Make it with `{COMMANDS[kind]}`."
    try:
        content = json.loads(read_text_file(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON", hint) from error

    found = content.get("kit") if isinstance(content, dict) else None
    if found != kind:
        other = COMMANDS.get(found) if isinstance(found, str) else None
        raise DataError(
            f"{path}: not a saved {kind}", f"Apply it with `{other} --apply`." if other else hint
        )
    if content.get("format") != FORMAT:
        given = str(content.get("format"))[:20]
        raise DataError(
            f"{path}: a saved {kind} of format {given!r}, but this kit reads format {FORMAT}", hint
        )
    return content


def check_number(path: str | Path, value: Any, name: str, low: float = -math.inf) -> float:
    """Return the value as a finite float.

    Raises:
        DataError: not a number, not finite, or below `low`; the message gives the file and `name`.
    """
    # Written so that NaN, which compares false with everything, is refused. bool is an int in
    # Python.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or value < low:
        raise DataError(
            f"{path}: {name} is {str(value)[:40]!r}",
            "The file was edited by hand; make it again.",
        )
    return float(value)


def check_interval(path: str | Path, content: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return `low` and `high` of an object, 0 <= low <= high, or None where it has neither.

    Raises:
        DataError: as `check_number`.
    """
    if content.get("low") is None and content.get("high") is None:
        return None
    low = check_number(path, content.get("low"), "low", low=0)
    high = check_number(path, content.get("high"), "high", low=low)
    return low, high
