"""The process table, read from /proc: who descends from this process, and what Linux can do about orphans."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from typing import NamedTuple

from pitstop.errors import UserError
from pitstop.supervise import STOP_SIGNALS

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
TRACKER = "wandb-core"  # the only program that may outlive its recipe for a while: it uploads


class Process(NamedTuple):
    """One living process."""

    pid: int
    parent: int
    name: str
    session: int = 0
    begun: int = 0  # clock ticks after boot: with the pid, it is this process for ever
    is_tracker: bool = False  # wandb-core or a child of it


def require_linux() -> None:
    """Raises UserError elsewhere."""
    if sys.platform != "linux":
        raise UserError(f"pitstop launch needs Linux; this is {sys.platform}. Start the recipe by accelerate launch.")


def require_proc() -> None:
    """Raises UserError where orphans could not be found."""
    try:
        shown = os.readlink("/proc/self")
    except OSError:
        shown = ""
    if shown != str(os.getpid()):
        raise UserError("/proc does not show this process: mount it (unshare --mount-proc; mount -t proc proc /proc)")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def become_subreaper() -> None:
    """From now on an orphan among the descendants becomes a child of this process: none is ever lost."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def begin_child(parent: int) -> None:
    """Between fork and exec: signals arrive again, and SIGTERM comes too when the supervisor is killed."""
    for number in STOP_SIGNALS:  # a script's `&` has SIGINT ignored: in the imports it would be lost
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)  # it was killed before the line above


def descendants(root: int) -> list[Process]:
    """All living processes below `root`, parents first; zombies do not live."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it is gone meanwhile
            if entry.isdigit():
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    head, _, rest = file.read().rpartition(")")
                fields = rest.split()
                if fields[0] not in "ZX":
                    parent, _, session = map(int, fields[1:4])
                    process = Process(int(entry), parent, head.partition("(")[2], session, int(fields[19]))
                    children.setdefault(process.parent, []).append(process)
    found = [Process(root, 0, "")]
    for parent_process in found:
        for child in children.get(parent_process.pid, []):
            found.append(child._replace(is_tracker=parent_process.is_tracker or child.name == TRACKER))
    return found[1:]


class Strangers:
    """What already descends from this process when it begins: jobs of a shell that became this program by exec, or the
    sshd of a container. They are left alone, and so is what they start.

    An orphan of theirs is adopted as ours are, so that its parent tells nothing any more; but it is still in a session
    of theirs, which nobody else can join. Where it has begun one of its own, it must have been seen below them before.
    """

    def __init__(self) -> None:
        living = descendants(os.getpid())
        self._known = {(process.pid, process.begun) for process in living}
        self._sessions = {process.session for process in living}

    def others(self) -> list[Process]:
        """The living descendants of this process that are not strangers, parents first."""
        others, strange = list[Process](), list[Process]()
        living = descendants(os.getpid())
        now = {process.session for process in living if (process.pid, process.begun) in self._known}
        sessions, pids = self._sessions | now | {os.getsid(0)}, set[int]()
        for process in living:
            if process.parent in pids or process.session in sessions or (process.pid, process.begun) in self._known:
                pids.add(process.pid)
                strange.append(process)
            else:
                others.append(process)
        self._known = {(process.pid, process.begun) for process in strange}
        self._sessions = {process.session for process in strange}
        return others

    def follow(self) -> None:
        """To be called about once a second: who has joined them since?"""
        if self._known:
            self.others()


def catches(pid: int, number: int) -> bool:
    """Has the process `pid` a handler for the signal?"""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def send(pids: Iterable[int], number: int) -> None:
    """A signal to each that is still there (and is ours: a program run by sudo is not)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def reap() -> dict[int, int]:
    """Children that have ended, own and adopted -> exit code; negative: the signal that ended them."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):  # there is no child left
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended
