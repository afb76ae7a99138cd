"""What has started this process, and what `pitstop launch` and a recipe tell each other: exit codes and signals do not
come through accelerate."""

import os
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path
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
    """A SIGHUP ends nothing from here on; what it means, a session decides."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))


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
