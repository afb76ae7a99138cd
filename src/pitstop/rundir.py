"""A run's directory: its lock, its status, its events. No torch: launchers read it too."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pitstop.clocks import process_age
from pitstop.errors import RunInUseError, UserError
from pitstop.files import (
    AppendOnly,
    boot_id,
    checkpoint_steps,
    clear_leftovers,
    fsync_directory,
    probe,
    read_json,
    read_lines,
    write_json,
)
from pitstop.meter import Meter

LOCK_RETRY_SECONDS = 0.2
HEARTBEAT_EVERY_SECONDS = 10.0


def now() -> str:
    """The wall clock, UTC, to the millisecond: for people. Durations come from the monotonic clock."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def whereabouts() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "boot_id": boot_id()}


class Lock:
    """One process writes to a run directory. POSIX `lockf`, not `flock`: a forked loader worker would inherit that one
    and hold it after its parent is killed. The kernel releases it with the process, however that ends."""

    def __init__(self, run: Path) -> None:
        self.path = run / "lock"
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """By this process."""
        return self._descriptor is not None

    def acquire(self, wait_seconds: float) -> None:
        """Raises RunInUseError, naming the holder, if it is still held after `wait_seconds`; UserError where the file
        system has no locks."""
        if self.held:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    os.close(descriptor)
                    raise UserError(
                        f"{self.path.parent} lies on a file system without locks ({error.strerror}), so two machines "
                        "could write there at once: use a local disk with --runs_dir."
                    ) from error
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
                os.close(descriptor)
                raise RunInUseError(f"{self.path.parent} is in use by another process: {_describe(holder)}.")
            time.sleep(LOCK_RETRY_SECONDS)
        if not self._is_still_there(descriptor):  # `pitstop archive` has moved the run meanwhile
            os.close(descriptor)
            raise RunInUseError(f"{self.path.parent} was moved away just now; the same command begins anew.")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(whereabouts() | {"since": now()}).encode(), 0)
        self._descriptor = descriptor

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _describe(holder: str) -> str:
    try:
        facts = json.loads(holder)
        return f"pid {facts['pid']} on {facts['host']} since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has not written its name yet"


class RunDirectory:
    """The files of a run that say where it stands. Only the process that holds the lock writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path)
        self.attempt = 0
        self.meter = Meter()
        self._events: AppendOnly | None = None
        self._log: AppendOnly | None = None
        self._unlogged: list[str] = []
        self._status: dict[str, Any] = {}
        self._status_lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """An attempt has begun: the lock is held and the files may be written."""
        return self._events is not None

    def exists(self) -> bool:
        return (self.path / "config.json").exists()

    def newest_step(self) -> int:
        """Of what calls itself a checkpoint; -1 where there is none."""
        steps = checkpoint_steps(self.path / "checkpoints")
        return steps[0][0] if steps else -1

    def config(self) -> dict[str, Any]:
        """Raises UserError if it is damaged."""
        path = self.path / "config.json"
        try:
            config = dict(read_json(path))
            if config["format"] == 1 and isinstance(config["definition"], dict):
                return config
        except (ValueError, TypeError, KeyError):
            pass
        raise UserError(f"{path} is damaged, or of another pitstop: put it back, or pitstop archive {self.path}")

    def status(self) -> dict[str, Any]:
        """What the last attempt wrote last; empty where there was none, or it is damaged."""
        try:
            return dict(read_json(self.path / "status.json"))
        except (OSError, ValueError, TypeError):
            return {}  # it is derived: the checkpoints say where to continue

    def take(self, wait_seconds: float) -> None:
        """Makes the directory if need be, and takes its lock.

        Raises:
            UserError: it cannot be made, or has no locks. RunInUseError: another process is at it.
        """
        try:
            there = next(parent for parent in self.path.absolute().parents if parent.exists())
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            for folder in (self.path.absolute(), *self.path.absolute().parents):
                fsync_directory(folder)
                if folder == there:
                    break
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} cannot be made ({error.strerror}): choose another with --runs_dir."
            ) from error
        self.lock.acquire(wait_seconds)
        clear_leftovers(self.path)

    def open(self, wait_seconds: float) -> None:
        """Makes the directory if need be, takes its lock, and begins an attempt.

        Raises:
            UserError: the disk cannot be written to, or has no locks. RunInUseError: another process is at it.
        """
        self.take(wait_seconds)
        probe(self.path)
        earlier = self.events()
        self.attempt = 1 + sum(event.get("event") == "attempt" for event in earlier)
        for event in earlier:
            self.meter.add(event)
        self._events = AppendOnly(self.path / "events.jsonl")
        self.event("attempt", price=self.meter.price, currency=self.meter.currency, **whereabouts())
        self._status = self.status()  # what this attempt does not come to say is as the last one left it
        self._log = AppendOnly(self.path / "train.log")
        self.log("\n".join(self._unlogged))
        self._unlogged.clear()

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return read_lines(self.path / "events.jsonl")

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl: what happened, when, in which attempt, and how long its process was up."""
        assert self._events is not None, "open() comes first"
        about = {"event": event, "time": now(), "attempt": self.attempt, "up": round(process_age(), 3)}
        self.meter.add(self._events.write_row(about | fields))

    def spent(self, budget: float) -> str:
        """Why --budget asks for a stop by now, or nothing."""
        self.meter.add({"attempt": self.attempt, "up": process_age()})
        return self.meter.spent(budget)

    def log(self, text: str) -> None:
        """A line of train.log; kept until the directory is there."""
        if self._log is None:
            self._unlogged.append(text)
        elif text:
            self._log.write(text + "\n")

    def write_status(self, *, durable: bool = True, **fields: Any) -> None:
        """Changes some fields of status.json, at once for every reader."""
        with self._status_lock:
            self._status |= fields
            self._status |= self.meter.report()
            record = {**self._status, "attempt": self.attempt, "heartbeat": now(), **whereabouts()}
            write_json(self.path / "status.json", record, durable=durable)

    def correct_status(self, **fields: Any) -> None:
        """The same where no attempt has begun, for a run that is not finished. The lock is held."""
        if (old := self.status()) and old.get("state") != "finished":
            write_json(self.path / "status.json", {**old, **fields})

    def close(self) -> None:
        self.lock.release()


class Heartbeat(threading.Thread):
    """Says every few seconds that the process lives, what it costs and where it is: in status.json and events."""

    def __init__(self, run: RunDirectory, progress: Callable[[], dict[str, Any]]) -> None:
        super().__init__(name="pitstop-heartbeat", daemon=True)
        self._run, self._progress = run, progress
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(HEARTBEAT_EVERY_SECONDS):
            with contextlib.suppress(OSError):  # a full disk must not end the heartbeat: the next save reports it
                self._run.event("heartbeat", **self._progress())
                self._run.write_status(durable=False, **self._progress())

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=5)
