"""What a user can cause, said in one message: what is wrong, where, and the next step.

The command line prints a `KitError` without a traceback and exits with 1 (`--debug` shows the traceback).
Anything else that escapes is a bug in kit.
"""


class KitError(Exception):
    """A failure the user can fix.

    Args:
        problem: what is wrong and where: the file, and the row and id if there is one.
        hint: the next step, usually a command to run.
    """

    def __init__(self, problem: str, hint: str = ""):
        super().__init__(problem)
        self.problem, self.hint = problem, hint

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.hint}" if self.hint else self.problem


class DataError(KitError):
    """A data file that cannot be used: raw competition files, processed rows, prediction frames."""


class RecipeError(KitError):
    """A recipe, or an override of one, that cannot be used."""


class BackboneError(KitError):
    """An encoder that cannot be found, loaded, or used with this recipe."""


class RunError(KitError):
    """A run directory that is missing, unfinished, or does not belong with the data at hand."""


class CollapseError(RunError):
    """A training that has learned nothing or lost its numbers; lower rates or another seed may cure it."""


class DeviceError(KitError):
    """The hardware cannot do what was asked: wrong kernels, not enough memory."""


class HeldError(KitError):
    """Another process is at work where this one would write."""
