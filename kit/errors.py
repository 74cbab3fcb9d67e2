"""Define the errors that a user can cause and mend. Raise a subclass of `KitError`.

The command line prints a `KitError` without a traceback and exits with 1 (`--debug` shows the
traceback). Any other exception that reaches the user is a bug in kit. `name_nearest` makes the hint
for a name that is not known.
"""

import difflib
from collections.abc import Iterable

# How alike two names are, of 1, for one to be taken for a slip of the other.
_ALIKE = 0.7

# How much less alike than the nearest name another one that is proposed may be.
_BEHIND = 0.1

# So many names are proposed at most.
_MOST_NAMES = 3


class KitError(Exception):
    """A failure that the user can mend.

    Args:
        problem: what is wrong and where: the file, and the row and id if there is one.
        hint: the next step, usually a command to run.
    """

    def __init__(self, problem: str, hint: str = ""):
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.hint}" if self.hint else self.problem


class DataError(KitError):
    """A data file that cannot be used: competition files, processed rows, prediction frames."""


class RecipeError(KitError):
    """A recipe, or an override of one, that cannot be used."""


class BackboneError(KitError):
    """An encoder that cannot be found, loaded, or used with this recipe."""


class RunError(KitError):
    """A run directory that is missing, unfinished, or does not belong to the data in use."""


class CollapseError(RunError):
    """A training that learned nothing or diverged; lower rates or another seed may help."""


class DeviceError(KitError):
    """Hardware that cannot do what was asked: missing kernels, not enough memory."""


class HeldError(KitError):
    """Another process is working in the same place."""


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
