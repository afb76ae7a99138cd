"""Output that outlives its terminal: a closed window or a pipe whose reader has gone never ends a run."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Nobody reads, or the disk of a log takes no more: what the run keeps on another disk is not its business.
GONE = (errno.EIO, errno.EPIPE, errno.EBADF, errno.ENXIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Sturdy:
    """A text stream that falls silent, for good, when nobody is there to read it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BlockingIOError:  # a terminal that is slow, and was told not to block: this line is lost
            return len(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BlockingIOError:
            return
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        """From here on /dev/null is behind it: for libraries that write to the descriptor, and for what is buffered."""
        if error.errno not in GONE:
            raise error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def sturdy() -> Iterator[None]:
    """Makes stdout and stderr so, for the life of a session."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:  # in place of a stream that was closed before the program began
        sys.stdout, sys.stderr = (Sturdy(stream or null) for stream in before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before
