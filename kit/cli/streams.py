"""Keep a command's work safe from its printing. Use `make_streams_lasting` before the first output.

Standard output may be closed, its reader may end (`| head`), its disk may be full, its terminal may
be gone, and its encoding may lack a character. None of that may end a training, nor follow a
finished one with a traceback.
"""

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LastingFile(io.RawIOBase):
    """A descriptor that accepts everything: after the first failure, output is dropped.

    Attributes:
        error: the first failure, None as long as there is none.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.error: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as much as the descriptor takes, and return how many bytes that were."""
        while self.error is None:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:
                # Another program that shares the pipe or terminal made it non-blocking.
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


def make_streams_lasting() -> None:
    """Replace standard output and error by streams that never raise.

    A test or a notebook may have set its own streams; those stay.
    """
    # A closed descriptor would go to the next file that is opened, and a library that prints would
    # write into that file.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)

    if sys.stdout is sys.__stdout__:
        sys.stdout = _make_lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _make_lasting(sys.stderr, 2)


def _make_lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None:
        stream.flush()
    file = LastingFile(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding if stream is not None else "utf-8",
        # A character that the encoding lacks is spelled out.
        errors="backslashreplace",
        line_buffering=descriptor == 2 or file.isatty(),
    )


def output_error() -> OSError | None:
    """Return why standard output could not be written, None if it could."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, LastingFile):
        return None
    sys.stdout.flush()
    return raw.error


def reader_is_gone() -> bool:
    """Return whether nothing reads standard output any more, as after `| head`."""
    error = output_error()
    return error is not None and error.errno == errno.EPIPE
