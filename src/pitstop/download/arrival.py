"""What is said while a file arrives: speed, time left, and what the wait costs."""

import os
import time
from collections.abc import Callable

from pitstop.clocks import duration

FIRST_SECONDS = 3.0  # until the first line
EVERY_SECONDS, LONGEST_SECONDS = 5.0, 60.0  # between two lines: twice as long each time
LIVE_SECONDS = 0.2
SLOW_SECONDS = 20.0  # from so much left on, advice is welcome


class Arrival:
    """Says how far a download is.

    Args:
        say: gets whole lines, rarely.
        live: gets the same text several times a second, for a line on a terminal that is written over.
        price: of the machine per hour; None: what PITSTOP_PRICE says, as for recipes.
        advice: said once, with the first line of a download that is slow.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        live: Callable[[str], None] | None = None,
        price: float | None = None,
        currency: str = "",
        advice: str = "",
    ) -> None:
        self.say = say
        self._live = live
        self._price = _price_of_environment() if price is None else price
        self._currency, self._advice = currency, advice
        self._name = ""
        self._next_line = time.monotonic() + FIRST_SECONDS
        self._interval_seconds, self._next_live = EVERY_SECONDS, 0.0

    def begin(self, name: str, here: int, total: int | None) -> None:
        """A request is answered: bytes come from `here` on, and `total` is the length of the file if known."""
        self._name, self._first, self._total = name, here, total
        self._begun = time.monotonic()

    def elsewhere(self, name: str, here: int, total: int | None) -> None:
        """So many bytes are there, brought by another process."""
        if self._name != name or here < self._first:
            self.begin(name, here, total)
        self.at(here)

    def at(self, here: int) -> None:
        """So many bytes are there."""
        now = time.monotonic()
        if now < self._next_line and (self._live is None or now < self._next_live):
            return
        speed = (here - self._first) / max(now - self._begun, 1e-3)
        left_seconds = None if self._total is None else max(0, self._total - here) / max(speed, 1.0)
        text = self._text(here, speed, left_seconds)
        if self._live:
            self._next_live = now + LIVE_SECONDS
            self._live(text)
        if now >= self._next_line:
            self._next_line = now + self._interval_seconds
            self._interval_seconds = min(2 * self._interval_seconds, LONGEST_SECONDS)
            if not self._live:
                self.say(text)
            if self._advice and (left_seconds is None or left_seconds > SLOW_SECONDS):
                self.say(self._advice)
                self._advice = ""

    def _text(self, here: int, speed: float, left_seconds: float | None) -> str:
        parts = [f"{speed / 1e6:,.2f} MB/s"]
        if left_seconds is None:
            return f"{self._name}: {here / 1e6:,.1f} MB, {parts[0]}"
        parts.append(f"{duration(round(left_seconds))} left")
        if self._price:
            cost = f"{self._price * left_seconds / 3600:.2f} {self._currency}".rstrip()
            parts.append(f"which cost {cost} at {self._price:g} an hour")
        return f"{self._name}: {here / 1e6:,.1f} of {(self._total or 0) / 1e6:,.1f} MB, {', '.join(parts)}"


def _price_of_environment() -> float:
    try:
        return float(os.environ.get("PITSTOP_PRICE") or 0)
    except ValueError:  # a recipe, or `pitstop fetch`, has refused it already
        return 0.0
