"""What the supervisor says: on stderr, whether or not anyone still listens."""

import contextlib
import os


def say(text: str) -> None:
    """A line, unbuffered: a dead terminal (EIO) or a closed pipe (EPIPE) must not end what supervises."""
    with contextlib.suppress(OSError):
        os.write(2, f"pitstop launch: {text}\n".encode(errors="replace"))
