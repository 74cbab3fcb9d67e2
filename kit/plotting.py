"""Import matplotlib whatever backend the shell names. Use `ignore_backend`.

kit draws into files, for which no backend is needed. But matplotlib reads MPLBACKEND when it is
first imported, and a name that it does not know, as of another program's backend, is an error.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress

_VARIABLE = "MPLBACKEND"


@contextmanager
def ignore_backend() -> Generator[None]:
    """Import matplotlib, and what imports it, in this block."""
    if "matplotlib" in sys.modules:
        yield
        return

    name = os.environ.pop(_VARIABLE, None)
    try:
        yield
    finally:
        if name is not None:
            os.environ[_VARIABLE] = name

    # In a notebook the user's own figures need the backend, and only the import would have set it.
    if name:
        import matplotlib as mpl

        with suppress(ValueError):
            mpl.rcParams["backend"] = name
