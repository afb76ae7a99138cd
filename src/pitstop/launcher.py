"""What has started this process, and what `pitstop launch` and a recipe tell each other: exit codes and signals do not
come through accelerate."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from pitstop.files import write_json

OUTCOME = "PITSTOP_OUTCOME"  # environment: a file that does not exist yet, for the recipe's word
GRACE = "PITSTOP_GRACE_SECONDS"  # environment: what a signal leaves the recipe
LAUNCHERS = {
    *("accelerate", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"),
    *("torchrun", "torch.distributed.run", "pitstop", "pitstop.cli"),
}

hangups: list[int] = []  # signals, of a terminal that closed while this process still imported what it needs


def note_hangups() -> None:
    """A closed terminal ends nothing from here on; what it means, a session decides."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))
    if (parent := agent()) and parent.had_terminal and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _hangup_or_end)


def _hangup_or_end(number: int, frame: FrameType | None) -> None:
    """An agent that hears twice that its terminal has closed passes SIGTERM on: see `Stopper`."""
    if terminal_closed():
        hangups.append(signal.SIGHUP)
    else:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def started_by_agent() -> bool:
    """Is the parent torchrun's agent, which passes SIGHUP on and kills 30 s later? Not that of `pitstop launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ and OUTCOME not in os.environ


@dataclass(frozen=True)
class Agent:
    """torchrun's, which has started this process: how to start it once more."""

    pid: int
    command: list[str]
    env: dict[bytes, bytes]  # its own: ours has what it gave its ranks
    folder: Path
    had_terminal: bool


@cache
def agent() -> Agent | None:
    """What was true at the first call, in `note_hangups`: it may end before this process does. None: there is none."""
    pid = os.getppid()
    if not started_by_agent() or not is_launcher(pid):
        return None
    process = Path(f"/proc/{pid}")
    with suppress(OSError):
        variables = (process / "environ").read_bytes().split(b"\0")
        env = dict(variable.split(b"=", 1) for variable in variables if b"=" in variable)
        return Agent(pid, command_line(pid), env, (process / "cwd").readlink(), terminal_of(pid) > 0)
    return None


def terminal_closed() -> bool:
    """Has an agent that lives lost the terminal it had?"""
    parent = agent()
    return parent is not None and parent.had_terminal and os.getppid() == parent.pid and terminal_of(parent.pid) == 0


def terminal_of(pid: int) -> int:
    """The number of a process's controlling terminal; 0: it has none; -1: there is no such process, or no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4])
    except OSError:
        return -1


def background_log(runs_dir: Path, pid: int) -> Path:
    """Where the output of a launch in the background goes; `pitstop attach` finds its process by the name."""
    return runs_dir.absolute() / f"launch-{datetime.now():%Y%m%d-%H%M%S}-{pid}.log"


def command_line(pid: int) -> list[str]:
    """The words of a process; none where there is no such process, or no /proc."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    return []


def is_launcher(pid: int) -> bool:
    """A shell is none: `nohup recipe &` must outlive it."""
    return bool(
        LAUNCHERS & {os.path.basename(word) for word in command_line(pid)[:3]}
    )  # python -m M, python FILE, FILE


def tell_launcher(**word: Any) -> None:
    """Writes where the run is, and in the end how the attempt ended, if there is somebody to read it."""
    if file := os.environ.get(OUTCOME):
        with suppress(OSError):  # it then takes the process for one that died without a word
            write_json(Path(file), {"pid": os.getpid(), **word})
