"""The program `pitstop`: what is done to runs from outside. `pitstop --help` must answer at once: imports wait."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pitstop import __version__
from pitstop.errors import BAD_USAGE, FINISHED, UserError

COMMANDS = {
    "launch": "start a recipe, pass signals on, start it again after a crash, leave no process behind",
    "attach": "look at a run from another terminal",
    "verify": "prove a run: compute a stretch of it again and compare hashes",
    "archive": "move a run aside, so that the same command starts anew",
}
LATER = ("status", "report", "compare", "predict", "export", "sync", "fetch", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `pitstop <argv>`; what went wrong is on stderr, without a traceback if a person can help it.

    Raises:
        SystemExit: after the help of a command (0) and after wrong flags (2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else ""
    if command in ("-h", "--help", "help"):
        print(_help())
        return FINISHED
    if command == "--version":
        print(f"pitstop {__version__}")
        return FINISHED
    if command not in COMMANDS:
        print(f"pitstop: {_unknown(command)}", file=sys.stderr)
        return BAD_USAGE
    try:
        return {"launch": _launch, "attach": _attach, "verify": _verify, "archive": _archive}[command](words[1:])
    except UserError as error:
        print(f"pitstop {command}: {error}", file=sys.stderr)
        return error.exit_code


def _help() -> str:
    return "\n".join(
        [
            "usage: pitstop COMMAND [--flag value ...]",
            "",
            "Training itself is a recipe's: pitstop launch recipes/cifar10.py, or accelerate launch recipes/cifar10.py",
            "",
            *(f"  {command:<10} {purpose}" for command, purpose in COMMANDS.items()),
            "",
            "  pitstop COMMAND --help   the flags of a command",
            "  pitstop --version        this is pitstop " + __version__,
            "",
            f"not there yet: {' '.join(LATER)}",
        ]
    )


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    known = [*COMMANDS, *LATER]
    if not command:
        return f"a command was expected, one of: {' '.join(COMMANDS)}. See pitstop --help"
    if command in LATER:
        return f"the command {command} is not there yet. See pitstop --help"
    near = get_close_matches(command.lower().lstrip("-"), known, n=1)
    hint = f"did you mean {near[0]}{' (not there yet)' if near[0] in LATER else ''}?" if near else "See pitstop --help"
    return f"there is no command {command!r}; {hint}"


def _launch(argv: Sequence[str]) -> int:
    from pitstop.supervise import launch

    return launch(argv)


def _attach(argv: Sequence[str]) -> int:
    from pydantic import BaseModel, ConfigDict

    from pitstop.attach import choose, follow
    from pitstop.config import Directory, from_environment
    from pitstop.flags import parse

    class Attach(BaseModel):
        """Shows what a run does until it ends. It only looks: Ctrl-C leaves, and the run goes on."""

        model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

        run: str = ""
        """name of a run below --runs_dir, or path to its directory; default: the one that was last heard of"""
        runs_dir: Directory = from_environment("PITSTOP_RUNS_DIR", "runs")
        """where runs lie"""

    flags = parse(Attach, argv, words=("run",), program="pitstop attach")
    try:
        follow(find_run(flags.run, flags.runs_dir) if flags.run else choose(flags.runs_dir, print))
    except KeyboardInterrupt:
        print("\ndetached: the run goes on. To stop it, signal the process that started it.")
    return FINISHED


def _verify(argv: Sequence[str]) -> int:
    from pydantic import BaseModel, ConfigDict, Field

    from pitstop.config import Directory, from_environment
    from pitstop.flags import parse
    from pitstop.verify import verify

    class Verify(BaseModel):
        """Computes a run again from one kept checkpoint to the next, beside it, and compares SHA-256 of all that comes
        out: exit code 0 says that the run is exact. The run itself is not touched."""

        model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

        run: str
        """name of a run below --runs_dir, or path to its directory"""
        from_step: int = Field(-1, ge=-1)
        """of the checkpoint to begin at; 0: the very beginning; -1: the last checkpoint but one"""
        runs_dir: Directory = from_environment("PITSTOP_RUNS_DIR", "runs")
        """where runs lie"""

    flags = parse(Verify, argv, words=("run",), program="pitstop verify")
    return verify(find_run(flags.run, flags.runs_dir), None if flags.from_step < 0 else flags.from_step)


def _archive(argv: Sequence[str]) -> int:
    from pydantic import BaseModel, ConfigDict

    from pitstop.config import Directory, from_environment
    from pitstop.files import read_json
    from pitstop.flags import parse

    class Archive(BaseModel):
        """Moves a run to <runs_dir>/archive: the command that made it then starts anew. Nothing is deleted."""

        model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

        run: str
        """name of a run below --runs_dir, or path to its directory"""
        runs_dir: Directory = from_environment("PITSTOP_RUNS_DIR", "runs")
        """where runs lie"""

    flags = parse(Archive, argv, words=("run",), program="pitstop archive")
    target = archive(find_run(flags.run, flags.runs_dir))
    store = None
    with suppress(OSError, ValueError, AttributeError):  # a damaged one may be why it is archived
        store = read_json(target / "config.json").get("config", {}).get("store")
    anew = f"it is still in {store}: begin anew with --name OTHER" if store else "the command that made it starts anew"
    print(f"{flags.run} lies in {target} now; {anew}.")
    return FINISHED


def find_run(run: str, runs_dir: Path) -> Path:
    """The directory of the run named `run` below `runs_dir`, or of the run at the path `run`.

    Raises:
        UserError: neither holds a config.json.
    """
    places = [Path(os.path.abspath(place)) for place in (runs_dir / run, Path(run).expanduser())]
    for place in places:
        if (place / "config.json").is_file():
            return place
    known = sorted(path.parent.name for path in runs_dir.glob("*/config.json"))
    from difflib import get_close_matches

    near = get_close_matches(run, known, n=3, cutoff=0.4) or known[:3]
    advice = f"Did you mean: {', '.join(near)}?" if near else f"No run lies in {runs_dir}: say --runs_dir."
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"{run!r} is no run: there is no config.json in {looked}. {advice}")


def archive(run: Path) -> Path:
    """Moves the directory of a run to its sibling `archive/<name>-<date>-<time>`, by one rename; returns where it is.

    Raises:
        RunInUseError: a process holds the run.
        UserError: the run lies in an archive already, is a link, or cannot be moved.
    """
    from pitstop.files import fsync_directory
    from pitstop.rundir import Lock

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


if __name__ == "__main__":
    sys.exit(main())
