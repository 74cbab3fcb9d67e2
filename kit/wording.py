"""Word messages: names near to an unknown one, counts with their nouns, causes in one line.

Use `name_nearest`, `counted` and `first_line`; `propose` and `find_nearest` are parts of the first.
"""

import difflib
from collections.abc import Iterable

# How alike two names are, of 1, for one to be taken for a slip of the other.
_ALIKE = 0.7

# How much less alike than the nearest name another one that is proposed may be.
_BEHIND = 0.1

# So many names are proposed at most.
_MOST_NAMES = 3


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in the plural or singular: "1 seed", "1,200 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or else its class."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0])


def shorten(text: str, width: int = 200) -> str:
    """Return a text, cut behind a word where it is longer than `width`."""
    if len(text) <= width:
        return text
    beginning = text[: width - 2]
    return (beginning.rpartition(" ")[0] or beginning) + " …"


def name_nearest(name: str, choices: Iterable[str], where: str) -> str:
    """Return the hint for an unknown name: the nearest of the choices, and where all of them are.

    Args:
        where: a sentence, such as "`kit recipes` lists all."
    """
    return propose(find_nearest(name, choices), where)


def find_nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Return up to three of the choices that the name may be a slip of, the nearest first."""
    # Whoever types capitals means the same name.
    typed = name.lower()
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(typed, spelled, _MOST_NAMES, _ALIKE)

    # What is clearly less alike than the nearest one is not meant.
    alike = [difflib.SequenceMatcher(None, match, typed).ratio() for match in near]
    pairs = zip(near, alike, strict=True)
    return [spelled[match] for match, share in pairs if share > alike[0] - _BEHIND]


def propose(names: Iterable[str], where: str) -> str:
    """Return a hint that asks whether one of the names was meant, and says where all are."""
    *others, last = [*names] or [""]
    if not last:
        return where
    return f"Did you mean {', '.join(others)}{' or ' if others else ''}{last}? {where}"
