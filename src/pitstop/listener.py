"""Signals heard in a thread, also while the main thread stands in C++, where no handler of Python's runs: what the
handlers in C write to a pipe (`signal.set_wakeup_fd`) comes through at once."""

import os
import select
import signal
import threading
from collections.abc import Callable, Sequence

LOOK_SECONDS = 1.0


class Listener:
    """Calls `heard` once, in a thread, with the first of some signals and an event that `close` sets; and `look` about
    once a second."""

    def __init__(
        self, signals: Sequence[int], heard: Callable[[int, threading.Event], None], look: Callable[[], object]
    ) -> None:
        self._signals, self._heard, self._look = signals, heard, look
        self._closed = threading.Event()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._writable, False)
        self._before = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._deaf)  # what a worker is told is not for us
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def tell(self, number: int) -> None:
        """By a handler of Python's, which may run before that in C has written, if another thread got the signal."""
        if not self._closed.is_set():
            os.write(self._writable, bytes([number]))

    def _deaf(self) -> None:
        if not self._closed.is_set():
            signal.set_wakeup_fd(-1)

    def _listen(self) -> None:
        first, numbers, pipe = 0, b"", select.poll()
        pipe.register(self._readable, select.POLLIN)
        while 0 not in numbers:
            self._look()
            numbers = os.read(self._readable, 64) if pipe.poll(LOOK_SECONDS * 1000) else b""
            mine = [number for number in numbers if number in self._signals]
            if mine and not first:
                self._heard(first := min(mine), self._closed)  # in the order in which Python runs its handlers

    def close(self) -> None:
        """What was heard is done by then."""
        signal.set_wakeup_fd(self._before)
        self._closed.set()
        os.write(self._writable, b"\0")
        self._thread.join()
        os.close(self._writable)
        os.close(self._readable)
