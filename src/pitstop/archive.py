"""`pitstop archive RUN`: moves a run aside. Nothing is deleted."""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pitstop.errors import FINISHED, UserError
from pitstop.files import fsync_directory, read_json
from pitstop.rundir import Lock
from pitstop.runs import RunFlags, flags_of


class Archive(RunFlags):
    """Moves a run to <runs_dir>/archive: the command that made it then starts anew. Nothing is deleted."""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop archive <argv>`."""
    flags = flags_of(Archive, "archive", argv)
    target = archive(flags.path)
    store = None
    with suppress(OSError, ValueError, AttributeError):  # a damaged one may be why it is archived
        store = read_json(target / "config.json").get("config", {}).get("store")
    anew = f"it is still in {store}: begin anew with --name OTHER" if store else "the command that made it starts anew"
    print(f"{flags.run} lies in {target} now; {anew}.")
    return FINISHED


def archive(run: Path) -> Path:
    """Moves the directory of a run to its sibling `archive/<name>-<date>-<time>`, by one rename; returns where it is.

    Raises:
        RunInUseError: a process holds the run.
        UserError: the run lies in an archive already, is a link, or cannot be moved.
    """
    if run.parent.name == "archive":
        raise UserError(f"{run} lies in an archive already")
    if run.is_symlink():
        raise UserError(f"{run} is a link; archive what it points to: pitstop archive {run.resolve()}")
    lock = Lock(run)
    try:
        lock.acquire(wait_seconds=0)
        target = _free_name(run.parent / "archive", f"{run.name}-{datetime.now():%Y%m%d-%H%M%S}")
        target.parent.mkdir(exist_ok=True)
        os.rename(run, target)
    except OSError as error:
        raise UserError(f"{run} cannot be moved to {run.parent / 'archive'}: {error.strerror}") from error
    finally:
        lock.release()
    fsync_directory(target.parent)
    fsync_directory(run.parent)
    return target


def _free_name(directory: Path, name: str) -> Path:
    """Two in one second need two names: a rename would replace an empty directory."""
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(directory / free for free in names if not os.path.lexists(directory / free))
