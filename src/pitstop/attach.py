"""`pitstop attach`: looks at a run from another terminal, and never touches it."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pitstop.errors import FINISHED, UserError
from pitstop.files import boot_id, read_json
from pitstop.launcher import command_line
from pitstop.rundir import RunDirectory
from pitstop.runs import Flags, find_run, flags_of

LOOK_EVERY_SECONDS = 0.5
PLAIN_EVERY_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # a heartbeat comes every ten
FIRST_LINES = 10
TAIL_BYTES = 1 << 16
NEXT = {"now": "the same command continues it", "person": "a person decides", "never": "there is nothing left to do"}


class Attach(Flags):
    """Shows what a run does until it ends. It only looks: Ctrl-C leaves, and the run goes on."""

    run: str = ""
    """name of a run below --runs_dir, or path to its directory; default: the one that was last heard of"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop attach <argv>`."""
    flags = flags_of(Attach, "attach", argv)
    try:
        follow(find_run(flags.run, flags.runs_dir) if flags.run else choose(flags.runs_dir, print))
    except KeyboardInterrupt:
        print("\ndetached: the run goes on. To stop it, signal the process that started it.")
    return FINISHED


def choose(runs_dir: Path, say: Callable[[str], None]) -> Path:
    """The run whose status is newest; while a `pitstop launch --detach` begins, the one that it is going to train.

    Raises:
        UserError: there is none.
    """
    waits = False
    while True:
        found = [path for path in runs_dir.glob("*/status.json") if path.is_file()]
        newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
        run = newest.parent if newest else None
        if run and not ended(run, RunDirectory(run).status()):
            return run
        launches = _launches(runs_dir)
        if not launches:
            if run is None:
                raise UserError(f"no run lies in {runs_dir}: say --runs_dir, or start one.")
            return run
        if not waits:
            say(f"waiting for the run that pid {launches[0]} starts")
            waits = True
        time.sleep(LOOK_EVERY_SECONDS)


def _launches(runs_dir: Path) -> list[int]:
    """Processes of `pitstop launch --detach` that live, by the names of their logs; the newest first."""
    living = []
    for log in sorted(runs_dir.glob("launch-*-*.log"), reverse=True):
        pid = log.stem.rpartition("-")[2]
        if pid.isdigit() and "launch" in command_line(int(pid)):
            living.append(int(pid))
    return living


def _lives(pid: int) -> bool:
    """On this machine, since its last boot."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def _is_here(record: dict[str, Any]) -> bool:
    return record.get("host") == platform.node() and record.get("boot_id") == boot_id()


def _holder(run: Path) -> int | None:
    """The living process that holds the run by its lock file: it may not have written a status yet."""
    try:
        record = dict(read_json(run / "lock"))
    except (OSError, ValueError, TypeError):
        return None
    pid = record.get("pid")
    return pid if isinstance(pid, int) and _is_here(record) and _lives(pid) else None


def ended(run: Path, status: dict[str, Any]) -> str:
    """Why there is nothing more to see, or nothing: the run goes on."""
    holder, pid = _holder(run), status.get("pid")
    if holder is not None and holder != pid:
        return ""  # an attempt begins, or ended without a word and the next one begins
    state, step = status.get("state"), f"step {status.get('step', '?')} of {status.get('total_steps', '?')}"
    if state is None:
        return "it has not begun to train, and no process is at it"
    restart = NEXT.get(str(status.get("restart")), "")
    if state == "finished":
        result = ", ".join(f"{name} {value:.4f}" for name, value in _numbers(status.get("result")).items())
        return f"finished after {status.get('total_steps', '?')} steps{f': {result}' if result else ''}"
    if state in ("stopped", "failed"):
        return f"{state} at {step} ({status.get('reason') or 'without a reason'}); {restart}"
    death = _death(status)
    return f"{death}; it was at {step}; the same command continues it" if death else ""


def _numbers(result: object) -> dict[str, float]:
    pairs = result.items() if isinstance(result, dict) else ()
    return {str(name): float(value) for name, value in pairs if isinstance(value, int | float)}


def _death(status: dict[str, Any]) -> str:
    """How it is known that a run which says `running` does not run."""
    pid, host = status.get("pid"), status.get("host")
    if _is_here(status):
        return "" if isinstance(pid, int) and _lives(pid) else f"its process (pid {pid}) is gone, without a word"
    if host == platform.node():
        return "the machine was started anew since: its process is gone"
    try:
        silent_seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(str(status["heartbeat"]))).total_seconds()
    except (KeyError, ValueError, TypeError):
        return f"its process on {host} has left no heartbeat"
    if silent_seconds > SILENCE_SECONDS:
        return f"no sign of life from {host} for {silent_seconds:.0f} s: its process is gone, or cut off"
    return ""


class Tail:
    """The lines of a growing file as they come; first the last ten of those that are there."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, -1
        self._rest = b""

    def lines(self) -> list[str]:
        """Whole lines since the last call."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                first = self._offset < 0
                if first or size < self._offset:
                    self._offset, self._rest = max(0, size - TAIL_BYTES), b""
                file.seek(self._offset)
                data = self._rest + file.read()
                self._offset = file.tell()
        except FileNotFoundError:
            self._offset = 0  # what comes is all new
            return []
        *whole, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in (whole[-FIRST_LINES:] if first else whole)]


class View:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._bar: Any = None
        self._plain = (-1, 0.0)  # the step last said, and when

    def line(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def at(self, step: int, total: int) -> None:
        if self.live:
            if self._bar is None:
                self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, leave=False)
            self._bar.total = total
            self._bar.update(step - self._bar.n)
            return
        said_step, said_at = self._plain
        if step != said_step and time.monotonic() - said_at >= PLAIN_EVERY_SECONDS:
            self._plain = step, time.monotonic()
            self.line(f"step {step}/{total}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def follow(run: Path) -> None:
    """Shows what the run does until it ends, and how it ended. Ctrl-C leaves; so does a reader that goes away."""
    view, tail, directory = View(), Tail(run / "train.log"), RunDirectory(run)
    heard, heard_at = None, time.monotonic()
    try:
        view.line(f"{run} (Ctrl-C leaves it alone)")
        while True:
            status = directory.status()
            end = ended(run, status)
            for line in tail.lines():  # after the status: what was said before the end is shown before it
                view.line(line)
            if isinstance(step := status.get("step"), int) and isinstance(total := status.get("total_steps"), int):
                view.at(step, total)
            if status.get("heartbeat") != heard or _is_here(status):
                heard, heard_at = status.get("heartbeat"), time.monotonic()
            elif time.monotonic() - heard_at > SILENCE_SECONDS:  # clocks of two hosts may differ: by ours alone
                end = end or f"no heartbeat came for {SILENCE_SECONDS:.0f} s: its process is gone, or cut off"
            if end:
                break
            time.sleep(LOOK_EVERY_SECONDS)
        view.close()
        view.line(f"{run.name}: {end}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it leaves
    finally:
        view.close()
