"""What a save costs, and how often it is worth it."""

import math
import statistics
from collections import deque

from pitstop.checkpoint import Saved
from pitstop.session.rows import Clock

FIRST_SECONDS = 5.0  # after the start of an attempt: nothing is known yet, and nothing is saved
REMEMBERED = 5
WARM_UP_STEPS = 3  # of an attempt: they choose kernels, compile, fill caches


class SaveCost:
    """The training time that a save takes: the stall of a step, and what the write behind the next ones slows them by.

    The interval is Young's sqrt(2 x cost x mean time between failures) (Communications of the ACM 17, 1974): then the
    time lost to saves and the time lost to failures add up to the least. Never shorter than the write itself.
    """

    def __init__(self, mtbf_seconds: float) -> None:
        self._mtbf_seconds = mtbf_seconds
        self._costs: deque[float] = deque(maxlen=REMEMBERED)
        self._write_seconds = 0.0
        self._begun = self._saving = Clock(0, 0.0)
        self._warm: Clock | None = None

    def began(self, clock: Clock) -> None:
        self._begun = clock

    def ended(self, clock: Clock, saved: Saved) -> float:
        """Returns the slowdown in seconds: what the steps beside the write took more than others do."""
        steps, seconds = clock.steps - self._begun.steps, clock.seconds - self._begun.seconds
        usual = self._usual_step()
        slowdown = saved.write_seconds if usual is None else seconds - steps * usual
        slowdown = min(max(0.0, slowdown), saved.write_seconds)
        if self._warm is not None and self._begun.steps >= self._warm.steps:
            self._saving = Clock(self._saving.steps + steps, self._saving.seconds + seconds)
        self._write_seconds = saved.write_seconds
        self._costs.append(saved.stall_seconds + slowdown)
        return slowdown

    def _usual_step(self) -> float | None:
        """Seconds of a step beside which nothing was written, in this attempt up to the save."""
        if self._warm is None:
            return None
        steps = self._begun.steps - self._warm.steps - self._saving.steps
        seconds = self._begun.seconds - self._warm.seconds - self._saving.seconds
        return seconds / steps if steps > 0 else None

    def stepped(self, clock: Clock) -> None:
        if self._warm is None and clock.steps >= WARM_UP_STEPS:
            self._warm = clock

    @property
    def interval(self) -> float:
        """Seconds from one save to the next."""
        if not self._costs:
            return FIRST_SECONDS
        return max(math.sqrt(2 * statistics.median(self._costs) * self._mtbf_seconds), self._write_seconds)
