"""Give runs words of the user's own. Use `read_tags` and `change_tags`."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from kit.errors import KitError, RunError
from kit.storage.atomic import read_text_file, write_json
from kit.storage.lock import hold_lock

TAGS_FILE = "tags.json"


def read_tags(run: str | Path) -> tuple[str, ...]:
    """Return the tags of a run, in the order in which they were given.

    Raises:
        RunError: the file is damaged.
    """
    path = Path(run) / TAGS_FILE
    if not path.is_file():
        return ()
    try:
        tags = json.loads(read_text_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}", "Delete it.") from error
    if not isinstance(tags, list):
        raise RunError(f"{path}: not a list of words", "Delete it.")
    return tuple(map(str, tags))


def change_tags(
    run: str | Path, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> tuple[str, ...]:
    """Give a run tags and take others away; return those that it has now.

    Raises:
        KitError: a tag is not one word.
        RunError: the tags of the run cannot be read.
    """
    words = list(add)
    for word in words:
        if not re.fullmatch(r"[\w.-]+", word):
            raise KitError(
                f"{word!r} cannot be a tag", "Use letters, digits, dots, hyphens and underscores."
            )
    path = Path(run) / TAGS_FILE
    removed = set(remove)
    with hold_lock(path.parent, "tags", wait=True):
        tags = [tag for tag in dict.fromkeys([*read_tags(run), *words]) if tag not in removed]
        if tags:
            write_json(path, tags)
        else:
            path.unlink(missing_ok=True)
    return tuple(tags)
