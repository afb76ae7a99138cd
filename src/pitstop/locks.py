"""One process at a time: several ranks that need the same file make it once."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pitstop.errors import UserError

POLL_SECONDS = 0.1


@contextmanager
def exclusive(
    path: Path, *, say: Callable[[str], None], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Holds the lock file `path`, which stays behind; another process that holds it is waited for, and `meanwhile` is
    called again and again.

    `lockf`, not `flock`: a child process does not inherit it, and NFS has it. It does not keep out threads of the
    same process.

    Raises:
        UserError: the file system has no locks.
        OSError: `path` cannot be opened for writing.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        waiting = False
        while not _try_lock(descriptor, path):
            if not waiting:
                say(f"Another process is at work on {path.name.removesuffix('.lock')}: waiting for it.")
                waiting = True
            meanwhile()
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
        return False
    except OSError as error:
        raise UserError(
            f"{path.parent.resolve()} is on a file system without file locks ({error}). "
            "Set PITSTOP_DATA_DIR (weights: HF_HOME) to a folder on a local disk."
        ) from error
    return True
