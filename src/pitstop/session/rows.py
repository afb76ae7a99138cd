"""Rows of metrics.jsonl, and how fast the training goes between them."""

import time
from typing import Any, NamedTuple

from pitstop.plan import Stream
from pitstop.record import Metrics
from pitstop.rundir import now
from pitstop.session import messages
from pitstop.session.attempt import Attempt


class Clock(NamedTuple):
    """Training alone: without evaluations, saves and start-up."""

    steps: int
    seconds: float


class Rows:
    """Writes train and eval rows, and says them. The speed counts training alone, without evaluations and saves."""

    def __init__(self, metrics: Metrics, attempt: Attempt, stream: Stream, total_steps: int) -> None:
        self._metrics, self._attempt, self._total_steps = metrics, attempt, total_steps
        self._batch_size, self._epoch_length = stream.batch_size, stream.epoch_length
        self._steps, self._seconds = 0, 0.0  # since the last row
        self._step_seconds = 0.0  # up to the last row
        self._done = Clock(0, 0.0)  # up to the last row
        self._tick = time.monotonic()

    def stepped(self) -> None:
        self._steps += 1
        self.pause()
        self._attempt.stepped()

    def pause(self) -> None:
        """Up to now it was training; if something else comes, `resume` ends it."""
        self._seconds += time.monotonic() - self._tick
        self._tick = time.monotonic()

    def resume(self) -> None:
        self._tick = time.monotonic()

    @property
    def clock(self) -> Clock:
        """Steps of this attempt, and the time that they took."""
        return Clock(self._done.steps + self._steps, self._done.seconds + self._seconds)

    @property
    def step_seconds(self) -> float:
        """Of a step, as far as the host knows."""
        if not self._steps:  # a row was written just now
            return self._step_seconds
        return self._seconds / self._steps

    def train(self, step: int, lr: float) -> None:
        """A row of means since the last one. Reads the device, so that what was asked of it is done."""
        means = self._metrics.means()
        self.pause()
        self._step_seconds = self._seconds / self._steps
        speed = self._batch_size / self._step_seconds
        self._done = Clock(self._done.steps + self._steps, self._done.seconds + self._seconds)
        self._steps, self._seconds = 0, 0.0
        self._write("train", step, {**means, "lr": lr, "images_per_second": round(speed, 1)})
        left = messages.duration((self._total_steps - step) * self._batch_size / speed)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._attempt.row(step, f"epoch {self._epoch(step):.2f}  {shown}  {speed:,.0f} images/s", left)

    def evaluation(self, step: int, result: dict[str, float]) -> None:
        """A row of an evaluation, which took the time since the last step."""
        seconds = round(time.monotonic() - self._tick, 3)
        self._write("eval", step, {**result, "seconds": seconds})
        self._attempt.say(f"step {step}  epoch {self._epoch(step):.2f}  {messages.result_line(result)}")
        self.resume()

    def _epoch(self, step: int) -> float:
        return round(step * self._batch_size / self._epoch_length, 6)

    def _write(self, kind: str, step: int, fields: dict[str, Any]) -> None:
        self._metrics.write({"kind": kind, "step": step, "epoch": self._epoch(step), **fields, "time": now()})
