"""Reasons to stop before the end. A signal sets a flag; the training loop looks at it between two steps.

Handlers never save and never communicate: they may run in the middle of either.
"""

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from pitstop.errors import PERSON_DECIDES, START_AGAIN

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopper:
    """Until `arm` a signal ends the process at once, for there is nothing to lose; after it, at the next step.

    A second Ctrl-C always means: at once.
    """

    def __init__(self) -> None:
        self.exit_code = 0  # 0: go on
        self.reason = ""
        self._armed = False
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)

    def arm(self) -> None:
        self._armed = True

    def uninstall(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        again = self.exit_code == PERSON_DECIDES and number == signal.SIGINT
        self.request(name, PERSON_DECIDES if number == signal.SIGINT else START_AGAIN)
        if again or not self._armed:
            raise SystemExit(self.exit_code)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{name}: saving after this step, then leaving\n".encode())

    def request(self, reason: str, exit_code: int) -> None:
        """Asks for a stop after this step; a person's wish (76) outweighs a machine's (75)."""
        if exit_code >= self.exit_code:
            self.exit_code, self.reason = exit_code, reason
