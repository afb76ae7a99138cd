"""The training's side of a tracker: it starts a process beside the training, and never waits for it."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pitstop.curves.about import Target, code_version
from pitstop.errors import FINISHED

FINISH_SECONDS = 25.0  # at most, at the end
CLIENT_SECONDS = 20.0  # of it, for the client's own last uploads
LEAVE_SECONDS = 1.0  # of the time that is left, to end what runs and to leave
OFFLINE_SECONDS = 15.0  # at most, to write what `wandb sync` reads
MODES = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class Recorder:
    """Sends rows of metrics.jsonl to a tracker, each once and in order, whatever the number of attempts.

    The training only says how much of the file a checkpoint covers. A tracker that is down, slow or logged out costs it
    nothing: one line says how to upload later.

    Args:
        run: its directory.
        say: prints a line.
        event: writes a line of events.jsonl.
    """

    def __init__(
        self, run: Path, recipe: Path, target: Target, *, say: Callable[[str], None], event: Callable[..., None]
    ) -> None:
        self._run, self._recipe, self._target = run, recipe, target
        self._say, self._event = say, event
        self._mode = MODES.get(os.environ.get("WANDB_MODE", ""), "online") if target.tracker == "wandb" else "online"
        self._sync = f"pitstop sync {shlex.quote(str(run))}"  # as it is typed
        self._covered = 0
        self._process: subprocess.Popen[str] | None = None
        self._waiting: list[dict[str, Any]] = []  # to be said once there is a process
        self._lock = threading.Lock()
        self._failed = self._done = self._killed = False
        self._thread = threading.Thread(target=self._follow, name="pitstop-curves", daemon=True)

    def start(self) -> None:
        """After the first step, which does not wait for it. Again: nothing."""
        if self._mode == "disabled" or self._thread.ident is not None:
            return
        if self._mode == "offline":
            self._say(f"W&B is offline, by WANDB_MODE; to upload: {self._sync}")
        self._thread.start()

    def covered(self, size_bytes: int) -> None:
        """So much of metrics.jsonl is behind a durable checkpoint."""
        self._covered = size_bytes
        self._tell(covered=size_bytes)

    def finish(self, exit_code: int, seconds_left: float | None) -> None:
        """Waits, bounded, until the tracker has what is covered; no longer than the time that is left."""
        most = FINISH_SECONDS if seconds_left is None else min(FINISH_SECONDS, seconds_left - LEAVE_SECONDS)
        until = time.monotonic() + most
        if self._mode == "disabled":
            return
        if self._thread.ident is None:
            if exit_code != FINISHED:  # it did nothing
                return
            self.start()  # no step was left to do
        self._tell(finish=exit_code)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._kill()
            self._thread.join(2)
        elif self._target.tracker == "wandb" and (self._mode == "offline" or self._failed):
            self._write_offline(exit_code, min(OFFLINE_SECONDS, until - time.monotonic()))

    @property
    def _name(self) -> str:
        return "W&B" if self._target.tracker == "wandb" else self._target.tracker

    @property
    def _later(self) -> str:
        """What is to be done about it."""
        if self._target.tracker == "wandb":
            return f"; to upload the rest: {self._sync}"
        return "; the next attempt sends the rest, metrics.jsonl has everything"

    def _follow(self) -> None:
        """The thread: says what the process says."""
        if version := code_version(self._recipe):
            self._event("code", **version)
        if self._mode == "offline":
            return
        try:
            process = self._open(self._mode)
        except OSError as error:  # a full disk, no process to be had
            self._hear({"failed": error.strerror})
            return
        with self._lock:
            self._process = process
            self._write_out()
        assert process.stdout is not None
        for line in process.stdout:
            self._hear(json.loads(line))
        process.stdout.close()
        code = process.wait()
        if not (self._done or self._failed):
            self._hear({"done": False} if self._killed else {"failed": f"its process ended with {code}"})

    def _hear(self, message: dict[str, Any]) -> None:
        if "online" in message:
            if self._target.tracker == "wandb":
                self._event("wandb", url=message["online"], rows=message["rows"])
            self._say(f"{self._name}: {message['online'] or 'recording'}")
        elif "failed" in message:
            self._failed = True
            reason = str(message["failed"]).splitlines()[0][:150]
            self._say(f"{self._name} cannot be used ({reason}): the run goes on without it{self._later}")
        else:
            self._done = True
            if not message["done"]:
                self._say(f"{self._name} has not taken everything in time{self._later}")

    def _open(self, mode: str) -> "subprocess.Popen[str]":
        folder = self._run / "curves"
        folder.mkdir(exist_ok=True)
        with open(folder / "recorder.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pitstop.curves"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # a signal to the group is for the training
            )
        order = {"run": str(self._run.resolve()), "target": self._target.event(), "mode": mode, "pid": os.getpid()}
        assert process.stdin is not None
        self._write(process, order | {"finish_seconds": CLIENT_SECONDS})
        return process

    def _tell(self, **message: Any) -> None:
        with self._lock:
            self._waiting.append(message)
            if self._process is not None:
                self._write_out()

    def _write_out(self) -> None:
        assert self._process is not None
        for message in self._waiting:
            self._write(self._process, message)
        self._waiting.clear()

    def _write(self, process: "subprocess.Popen[str]", message: dict[str, Any]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has left, and said why
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _kill(self) -> None:
        """The process, and what it started."""
        self._killed = True
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _write_offline(self, exit_code: int, seconds: float) -> None:
        """For a plain `wandb sync`, by a fresh process: the one before may have left its client in any state."""
        try:
            process = self._open("offline")
        except OSError:
            return
        self._write(process, {"covered": self._covered})
        self._write(process, {"finish": exit_code})
        try:
            process.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
