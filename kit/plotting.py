"""Import matplotlib whatever the environment says. Use `importing_matplotlib`.

kit draws into files, for which no backend is needed. But matplotlib reads MPLBACKEND when it is
first imported, and a name that it does not know, as of another program's backend, is an error. So
is, until its version 3.11, a user without a home, as in some containers. LightGBM imports it too.
"""

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_VARIABLE = "MPLBACKEND"


@contextmanager
def importing_matplotlib() -> Generator[None]:
    """Import matplotlib, and what imports it, in this block."""
    if "matplotlib" in sys.modules:
        yield
        return

    name = os.environ.pop(_VARIABLE, None)
    try:
        Path.home()
    except RuntimeError:
        os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "matplotlib"))
    try:
        yield
    finally:
        if name is not None:
            os.environ[_VARIABLE] = name

    # In a notebook the user's own figures need the backend, and only the import would have set it.
    if name and "matplotlib" in sys.modules:
        import matplotlib as mpl

        with suppress(ValueError):
            mpl.rcParams["backend"] = name
