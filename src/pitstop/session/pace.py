"""All ranks do the same thing at the same step: one small collective about once a second."""

import time
from collections.abc import Sequence

import torch

from pitstop.config import crossings
from pitstop.plan import Stream

LOOK_EVERY_SECONDS = 1.0
MOST_STEPS = 100  # steps may become slower all at once


def reaches(every_epochs: float, stream: Stream, step: int) -> bool:
    """Is this the first step whose start reaches a border of `every_epochs`? Computed from the step alone."""
    before, now = (
        crossings(every_epochs, stream.epoch_length, stream.batch_size * max(0, start)) for start in (step - 1, step)
    )
    return now > before


class Pace:
    """Decides at which steps the ranks ask each other, and what follows from their answers.

    One process looks at every step. Several look at a step that all know beforehand: after about a second, by the
    slowest rank's step time at the look before.
    """

    def __init__(self, world: int, device: torch.device) -> None:
        self._world, self._device = world, device
        self._interval = self._next = 1
        self._read = time.monotonic()

    def due(self, step: int) -> bool:
        return self._world == 1 or step >= self._next

    def may_read(self) -> bool:
        """May the device be read, which waits for it? On a CPU always, else about once a second."""
        if self._device.type != "cpu" and time.monotonic() - self._read < LOOK_EVERY_SECONDS:
            return False
        self._read = time.monotonic()
        return True

    def most(self, wish: float) -> float:
        """The largest of the ranks' wishes. Called by all ranks, at the same place."""
        if self._world == 1:
            return wish
        value = torch.tensor(wish, dtype=torch.float64).to(self._device)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        return value.item()

    def agree(self, step: int, wishes: Sequence[float], step_seconds: float) -> Sequence[float]:
        """The largest of the ranks' wishes, one by one. Called by all ranks, at the same step."""
        if self._world == 1:
            return wishes
        values = torch.tensor([*wishes, step_seconds], dtype=torch.float64).to(self._device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        *agreed, slowest = values.tolist()
        steps = int(LOOK_EVERY_SECONDS / max(slowest, 1e-6))
        self._interval = max(1, min(MOST_STEPS, 2 * self._interval, steps))  # not at once: the first steps mislead
        self._next = step + self._interval
        return list(agreed)
