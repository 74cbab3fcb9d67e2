"""What a fit leaves for later predictions: a JSON file that names its kind and format, read back with suspicion."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.errors import DataError
from kit.storage.atomic import write_json

FORMAT = 1
COMMANDS = {
    "calibration": "kit calibrate",
    "blend": "kit ensemble",
}  # by kind, the command that writes and applies it


def write_fitted(path: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes `content` with its kind and the format's number, whole or not at all."""
    write_json(path, {"kit": kind, "format": FORMAT, **content})


def read_fitted(path: str | Path, kind: str) -> dict[str, Any]:
    """The content of a file that `write` wrote for this kind.

    Raises:
        DataError: missing, not JSON, of another kind or format.
    """
    path = Path(path)
    again = f"Make it with `{COMMANDS[kind]}`."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", again) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON", again) from error
    found = content.get("kit") if isinstance(content, dict) else None
    if found != kind:
        other = COMMANDS.get(found) if isinstance(found, str) else None
        raise DataError(
            f"{path}: not a saved {kind}", f"Apply it with `{other} --apply`." if other else again
        )
    if content.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {str(content.get('format'))[:20]!r} of a saved {kind}, where this kit reads {FORMAT}",
            again,
        )
    return content


def check_number(path: str | Path, value: Any, what: str, low: float = -math.inf) -> float:
    """The value as a finite float of at least `low`; raises DataError that names the file and what it is."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not numeric or not abs(value) <= sys.float_info.max or value < low
    ):  # NaN is within no bounds
        raise DataError(
            f"{path}: {what} is {str(value)[:40]!r}", "The file was changed by hand; make it again."
        )
    return float(value)


def check_interval(path: str | Path, content: Mapping[str, Any]) -> tuple[float, float] | None:
    """`low` and `high` of an object, both 0 or more, or None where neither is there; raises as `number`."""
    if content.get("low") is None and content.get("high") is None:
        return None
    low = check_number(path, content.get("low"), "low", low=0)
    return low, check_number(path, content.get("high"), "high", low=low)
