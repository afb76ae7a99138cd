"""One attempt of a recipe as a child process: signals in, exit code out, and nothing left in the process table."""

import math
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from pitstop.launcher import GRACE, OUTCOME
from pitstop.supervise import STOP_SIGNALS, WAITED
from pitstop.supervise.outcome import read_outcome
from pitstop.supervise.processes import Strangers, begin_child, catches, reap, send
from pitstop.supervise.program import Command
from pitstop.supervise.say import say

LOOK_EVERY_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.1
TRACKER_SECONDS = 15.0  # more than the others, for wandb-core
AFTER_WORD_SECONDS = 600.0  # for a process that said how it ended, and then hangs in its exit (seen)
NOTICE_MARGIN_SECONDS = 5.0  # a recipe that uses its time to the full must not be killed at its last line
UNKILLABLE_SECONDS = 20.0  # in the kernel's hands (a dead NFS or GPU): nobody can end it


def next_signal(seconds: float) -> int:
    """The next of WAITED, blocked in `pitstop.supervise.launch`; 0 if none comes in this time."""
    info = signal.sigtimedwait(WAITED, max(0.0, seconds))
    return info.si_signo if info else 0


class Child:
    """A started recipe, alone or below a launcher. What descended from the supervisor before is none of its business.

    Args:
        outcome: the file in which rank 0 leaves its word.
        grace_seconds: after a signal, and after the recipe's end, until what is left is killed.

    Attributes:
        passed: the signals that it was sent.
        first_newest: the step of the newest checkpoint when it began (-1: none), by its word; None: it did not say.
    """

    def __init__(self, command: Command, outcome: Path, grace_seconds: float) -> None:
        self.passed: list[int] = []
        self.first_newest: int | None = None
        self._command, self._outcome, self._grace = command, outcome, grace_seconds
        self._deadline = math.inf
        self._code: int | None = None
        self._said_its_word = False
        self._strangers = Strangers()
        self._process = subprocess.Popen(
            command.argv,
            env={
                **command.env,
                OUTCOME: str(outcome),
                GRACE: f"{max(1.0, grace_seconds - NOTICE_MARGIN_SECONDS):g}",
            },
            start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is passed on to the right process
            preexec_fn=partial(begin_child, os.getpid()),
        )

    def wait(self) -> int:
        """Its exit code (negative: a signal), once it and all its descendants are gone."""
        while self._code is None:
            self._look(min(LOOK_EVERY_SECONDS, self._deadline - time.monotonic()))
            self._hear()
            self._strangers.follow()
            if time.monotonic() >= self._deadline:
                break
        self._drain()
        if self._code is None:
            self._process.returncode = self._code = -signal.SIGKILL  # sent, and not obeyed
        return self._code

    def _look(self, seconds: float) -> None:
        number = next_signal(seconds)
        if number in STOP_SIGNALS:
            self._pass_on(number)
        ended = reap()
        if self._process.pid in ended:
            self._code = self._process.returncode = ended[self._process.pid]

    def _hear(self) -> None:
        """Its word: the last one may not repeat what the first said."""
        if self._said_its_word:
            return
        outcome = read_outcome(self._outcome)
        if outcome.newest is not None:
            self.first_newest = outcome.newest
        if outcome.restart:
            self._said_its_word = True  # and its exit is bounded
            self._deadline = min(self._deadline, time.monotonic() + AFTER_WORD_SECONDS)

    def _pass_on(self, number: int) -> None:
        """The first wish once, and up to two Ctrl-C, of which the second means at once; a third kills."""
        interrupts = self.passed.count(signal.SIGINT)
        if number == signal.SIGINT and interrupts == 2:
            self._deadline = time.monotonic()
        if self.passed and (number != signal.SIGINT or interrupts == 2):
            return
        if not self.passed:
            say(f"{signal.Signals(number).name} is passed on; what still runs in {self._grace:g} s will be killed")
        self.passed.append(number)
        self._deadline = min(self._deadline, time.monotonic() + self._grace)
        send(self._targets(), number)

    def _targets(self) -> list[int]:
        """The recipe, or the launcher that passes signals on to its ranks: not its group, where loader workers are.

        accelerate's simple launcher (a --config_file may ask for it) dies of SIGTERM and passes nothing on: there its
        children are meant.
        """
        living = self._strangers.others()
        main = self._process.pid
        if self._code is not None:
            return [process.pid for process in living if process.parent == os.getpid() and not process.is_tracker]
        children = [process.pid for process in living if process.parent == main]
        deaf = self._command.is_launcher and not catches(main, signal.SIGTERM)
        return children if children and deaf else [main]

    def _drain(self) -> None:
        """The recipe's time is over: its orphans, adopted by now, are asked to leave, and then all are made to."""
        if self._code is not None:
            self._deadline = min(self._deadline, time.monotonic() + self._grace)
            send(self._targets(), signal.SIGTERM)
        while left := self._strangers.others():
            late_seconds = time.monotonic() - self._deadline
            if late_seconds > TRACKER_SECONDS + UNKILLABLE_SECONDS:
                say(f"not even SIGKILL ends {', '.join(f'{process.name} (pid {process.pid})' for process in left)}")
                break
            if late_seconds >= 0:
                doomed = [process for process in left if late_seconds >= TRACKER_SECONDS or not process.is_tracker]
                send((process.pid for process in doomed), signal.SIGKILL)
            self._look(DRAIN_LOOK_SECONDS)
        self._look(0)
