"""A disk that fills up while a training writes: one message, whichever library was writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.errors import KitError, RunError
from kit.storage.atomic import disk_is_full


@contextmanager
def advice_on_disk(part: Path) -> Iterator[None]:
    """Turns a checkpoint that could not be written for want of room into advice.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # torch, safetensors and the system each raise kinds of their own
        if not disk_is_full(error):
            raise
        raise RunError(
            f"{part}: a checkpoint cannot be written: {getattr(error, 'strerror', None) or error}",
            "Free some space (a checkpoint holds the model and its optimizer, and there are two), then add --resume.",
        ) from error
