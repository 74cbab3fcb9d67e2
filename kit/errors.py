"""Define the errors that a user can cause and mend. Raise a subclass of `KitError`.

The command line prints a `KitError` without a traceback and exits with 1 (`--debug` shows the
traceback). Any other exception that reaches the user is a bug in kit.
"""


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
