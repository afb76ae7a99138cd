"""Reasons to stop before the end: each sets a flag, and the training loop looks at it between two steps.

Handlers never save and never communicate: they may run in the middle of either.
"""

import atexit
import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from pitstop.errors import PERSON_DECIDES, START_AGAIN
from pitstop.launcher import GRACE, hangups, is_launcher, started_by_agent, terminal_closed
from pitstop.listener import Listener
from pitstop.notice import Notice

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Not SIGTERM: a terminal that closes takes the launcher with it, and that is no wish to stop.
PARENT_DIED = signal.SIGUSR2
PR_SET_PDEATHSIG = 1
SIGNAL_SECONDS = 25.0  # what is taken to be left after a signal: Kubernetes, Slurm and GCP give 30 s
AT_ONCE_SECONDS = 3.0  # for the last words of a process that has nothing to save
LOOK_SECONDS = 1.0  # between two looks at clocks and files
TOGETHER_SECONDS = 0.3  # within which a hangup and the death of the launcher that it causes arrive
HANGUP_SECONDS = 5.0
CPP_SECONDS = 5.0  # after which a process that was to leave at once stands in C++
SIGNAL_FOLLOWS_SECONDS = 1.0  # all ranks are signalled one by one, and by a loaded machine


def _deaf(number: int, frame: FrameType | None) -> None:
    """Instead of SIG_IGN, which programs that are started would inherit."""


@dataclass(frozen=True)
class Limit:
    """Something to look at from time to time: `check` gives a reason to stop, or nothing."""

    check: Callable[[], str]
    exit_code: int


def time_limit(hours: float, age_seconds: Callable[[], float]) -> Limit:
    """--max_hours of this attempt."""
    return Limit(
        lambda: f"--max_hours {hours:g} are over" if hours and age_seconds() >= hours * 3600 else "", START_AGAIN
    )


def stop_file(run: Path) -> Limit:
    """A file STOP in the run directory."""
    return Limit(lambda: f"{run / 'STOP'} is there" if os.path.exists(run / "STOP") else "", PERSON_DECIDES)


class Stopper:
    """Until `arm` a signal ends the process at once, for there is nothing to lose; after it, at the next step.

    A second Ctrl-C always means: at once. A closed terminal (SIGHUP) means nothing; a launcher that died means stop,
    unless the terminal was closed with it.

    Attributes:
        exit_code: of the wish to stop; 0: go on.
        deadline: on the monotonic clock, seconds: until when the process may live.
        save_soon: someone warns that the machine may be taken; reset by who has saved.
    """

    def __init__(self) -> None:
        self.exit_code, self.reason = 0, ""
        self.deadline: float | None = None
        self.save_soon = False
        self._limits: list[Limit] = []
        self._looked = time.monotonic()
        self._armed, self._interrupts = False, 0
        self._hangup: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._leaving_until = 0.0
        self._ear: Listener | None = None
        self._terminal_lost: float | None = None

    def install(self, hung_up: Callable[[], None] = lambda: None) -> None:
        """Handles signals, and asks for one at the death of the launcher, if one has started this process. Where a
        closed terminal is taken for a wish to stop, `hung_up` is called at once, in a thread."""
        if started_by_agent():
            self._ear = Listener((signal.SIGHUP, *SIGNALS), partial(self._heard, hung_up), self._just_closed)
        handlers = dict.fromkeys(SIGNALS, self._handle) | {PARENT_DIED: self._orphaned}
        handlers |= {signal.SIGHUP: self._handle if self._ear else self._hung_up}
        for number, handler in handlers.items():
            self._before[number] = signal.signal(number, handler)
        self._ask_for(PARENT_DIED)

    def heed_hangup(self) -> None:
        """A terminal that closed before `install`. Raises SystemExit where that is taken for a wish to stop."""
        if hangups:
            (self._handle if self._ear else self._hung_up)(hangups[-1], None)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While torch waits, in C++, for other ranks that may never come, no handler of Python's runs: so a signal, and
        the death of an agent, end the process as they end any other. Nothing is lost before the first step. (Under an
        agent signals are heard in a thread.)"""
        signals = () if self._ear else SIGNALS
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        self._ask_for(signal.SIGKILL if self._ear else PARENT_DIED)
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, self._handle)
            self._ask_for(PARENT_DIED)

    def _ask_for(self, number: signal.Signals) -> None:
        """The signal at the death of the launcher, if one has started this process."""
        if is_launcher(parent := os.getppid()):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it died just before
                self.request("the launcher has died", START_AGAIN)

    def leave_if_asked(self, *, wait: bool) -> None:
        """Something fails. Before the first step that may be because of a signal: torch can swallow the SystemExit of a
        handler, and a rank that left breaks what connects it to the others, maybe before they are asked to: `wait` for
        a signal that is on its way.

        Raises:
            SystemExit: the process was asked to leave, and nothing is lost.
        """
        if self._armed:
            return
        if wait and not self._leaving_until:
            time.sleep(SIGNAL_FOLLOWS_SECONDS)
        if self._leaving_until:
            raise SystemExit(self.exit_code)

    def leave(self) -> None:
        """The process is on its way out, and keeps its exit code: launchers say everything twice, and their second word
        comes when it is all but gone. Who catches its SystemExit and lives on must give signals their handlers back."""
        self._leaving_until = math.inf

    def arm(self) -> None:
        self._armed = True

    def watch(self, *limits: Limit) -> None:
        self._limits += limits

    def uninstall(self) -> None:
        """After `leave` one that hangs is ended by Ctrl-C, or by the death of its launcher: that reads no code then."""
        if self._ear:
            self._ear.close()
        for number, handler in self._before.items():
            deaf = self._leaving_until == math.inf and number not in (signal.SIGINT, PARENT_DIED)
            signal.signal(number, _deaf if deaf else handler)
            if deaf:  # the interpreter gives up its handlers long before the process ends
                atexit.register(signal.signal, number, signal.SIG_IGN)
        self._before.clear()

    def look(self) -> int:
        """The exit code of the wish to stop, after a look at clocks and files about once a second; 0: go on."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.look_now()
        return self.exit_code

    def look_now(self) -> int:
        self._looked = time.monotonic()
        for limit in self._limits:
            if reason := limit.check():
                self.request(reason, limit.exit_code)
        return self.exit_code

    def notice(self, notice: Notice) -> None:
        """From the thread that watches the cloud. Before `arm` it ends the process, as a signal would."""
        if not notice.stops:
            self.save_soon = True
            return
        self.request(notice.reason, START_AGAIN, notice.deadline)
        if not self._armed:
            os.kill(os.getpid(), signal.SIGTERM)  # only the main thread can leave

    def request(self, reason: str, exit_code: int, deadline: float | None = None) -> None:
        """Asks for a stop after this step; a person's wish (76) outweighs a machine's (75)."""
        if deadline is not None:
            self.deadline = min(deadline, self.deadline or deadline)
        if exit_code > self.exit_code or not self.exit_code:
            self.exit_code, self.reason = exit_code, reason

    @property
    def seconds_left(self) -> float | None:
        """Until the process may be killed; None where nobody has said so."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ear:
            self._ear.tell(number)
        name = signal.Signals(self._meaning(number)).name
        self._interrupts += number == signal.SIGINT
        code = PERSON_DECIDES if number == signal.SIGINT else START_AGAIN
        seconds = float(os.environ.get(GRACE) or SIGNAL_SECONDS)
        self.request(name, code, time.monotonic() + seconds)
        self._leave_or_say(name, at_once=self._interrupts > 1)

    def _heard(self, hung_up: Callable[[], None], number: int, closed: Event) -> None:
        """In a thread, and once: what follows a hangup is the agent's second word for it."""
        if self._meaning(number) == signal.SIGHUP and self.reason in ("", signal.SIGHUP.name):
            hung_up()
        if self._armed or closed.wait(CPP_SECONDS):
            return
        if not self._armed and self._leaving_until < math.inf:  # it came neither just before `arm`, nor too late
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(START_AGAIN)

    def _meaning(self, number: int) -> int:
        """A terminal tells its end twice, through its shell and by itself; an agent that hears the second SIGHUP while
        it acts on the first sends SIGTERM."""
        return signal.SIGHUP if number == signal.SIGTERM and self._just_closed() else number

    def _just_closed(self) -> bool:
        """Has the agent lost its terminal within the last seconds? A signal long after it is a wish of its own."""
        if not terminal_closed():
            return False
        self._terminal_lost = self._terminal_lost or time.monotonic()
        return time.monotonic() - self._terminal_lost < HANGUP_SECONDS

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        self._hangup = time.monotonic()

    def _orphaned(self, number: int, frame: FrameType | None) -> None:
        time.sleep(TOGETHER_SECONDS)  # a SIGHUP that came with it is handled in here
        if self._hangup is not None and time.monotonic() - self._hangup < HANGUP_SECONDS:
            return
        self.request("the launcher has died", START_AGAIN)
        self._leave_or_say("the launcher has died", at_once=False)

    def _leave_or_say(self, why: str, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now < self._leaving_until:
            return  # what it does on its way out is not cut short
        if at_once or not self._armed:
            self.deadline = self._leaving_until = now + AT_ONCE_SECONDS
            raise SystemExit(self.exit_code)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{why}: saving after this step, then leaving\n".encode())
