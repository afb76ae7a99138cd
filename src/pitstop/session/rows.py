"""Rows of metrics.jsonl, and how fast the training goes between them."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import torch

from pitstop.clocks import duration, process_age
from pitstop.config import crossings
from pitstop.machine import gpu_use
from pitstop.plan import Stream
from pitstop.record import Metrics
from pitstop.rundir import now
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.estimate import forecast

FIRST_SECONDS = 60.0  # of a process: before, its speed says little
WEIGHT = 0.3  # of the newest row's speed, in a forecast


class Clock(NamedTuple):
    """Training alone: without evaluations, saves and start-up."""

    steps: int
    seconds: float


class Rows:
    """Writes train and eval rows, and says them. The speed counts training alone, without evaluations and saves."""

    def __init__(
        self, metrics: Metrics, attempt: Attempt, stream: Stream, total_steps: int, device: torch.device
    ) -> None:
        self._metrics, self._attempt, self._total_steps, self._device = metrics, attempt, total_steps, device
        self._stream, self._waited = stream, 0.0
        self._batch_size, self._epoch_length = stream.batch_size, stream.epoch_length
        self._steps, self._seconds = 0, 0.0  # since the last row
        self._step_seconds = 0.0  # up to the last row
        self._usual_seconds = 0.0  # of a step, over the last few rows: one row's speed makes a restless forecast
        self._evaluation_seconds = 0.0  # of the last one
        self._told = False
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

    def train(self, step: int, lr: float, also: Mapping[str, Any]) -> tuple[float, dict[str, float], float]:
        """A row of means since the last one, and of what it has `also`. Reads the device, so that what was asked of it
        is done.

        Returns its epoch, the means, and the share of the time in which there was no batch.
        """
        means = self._metrics.means()
        self.pause()
        self._step_seconds = self._seconds / self._steps
        self._usual_seconds += (self._step_seconds - self._usual_seconds) * (WEIGHT if self._usual_seconds else 1)
        speed = self._batch_size / self._step_seconds
        self._done = Clock(self._done.steps + self._steps, self._done.seconds + self._seconds)
        waited = getattr(self._stream, "waited_seconds", 0.0)  # only a loader with workers knows
        share, self._waited = (waited - self._waited) / self._seconds, waited
        self._steps, self._seconds = 0, 0.0
        self._write("train", step, {**means, "lr": lr, "images_per_second": round(speed, 1), **self._now(step), **also})
        left_seconds = self._left(step)
        shown = "  ".join(f"{name} {value:.{4 if abs(value) < 1000 else 0}f}" for name, value in means.items())
        text = f"epoch {self._epoch(step):.2f}  {shown}  {speed:,.0f} images/s{self._outlook(left_seconds)}"
        self._attempt.row(step, text, duration(left_seconds))
        return self._epoch(step), means, share

    def _now(self, step: int) -> dict[str, float]:
        """What the bill and the GPU come to by now. Rank 0 writes the row, and it alone has the bill."""
        if not self._attempt.leads:
            return {}
        run = self._attempt.run
        bill = run.meter.by_now(run.attempt, up=process_age(), step=step, trained=self._done.seconds)
        return bill | gpu_use(self._device)

    def _left(self, step: int) -> float:
        """Seconds to the end, evaluations too, as long as each took up to now."""
        every = self._attempt.config.eval_every
        positions = (self._batch_size * number for number in (step, self._total_steps))
        before, at_end = (crossings(every, self._epoch_length, position) for position in positions)
        return (self._total_steps - step) * self._usual_seconds + (at_end - before) * self._evaluation_seconds

    def _outlook(self, left_seconds: float) -> str:
        """`  0.05 CNY paid  done by 21:40, 0.30 CNY`; the forecast from the second minute on, said once, and kept
        current on the bar."""
        if not self._attempt.leads:
            return ""
        config, cost = self._attempt.config, self._attempt.run.meter.cost()
        paid = f"  {cost:.2f} {config.currency} paid" if cost else ""
        if process_age() < FIRST_SECONDS:
            return paid
        outlook = forecast(left_seconds, cost, config, datetime.now())
        if not self._told:
            self._told = True
            self._attempt.say(f"at this speed {outlook}")
        return f"{paid}  {outlook}"

    def evaluation(
        self, kind: str, step: int, result: Mapping[str, float], also: Callable[[], Mapping[str, Any]]
    ) -> float:
        """A row ("eval", "val" or "test") of an evaluation, which took the time since the last step; its epoch. What
        the row has `also` may take time of its own."""
        self._evaluation_seconds = time.monotonic() - self._tick
        what = "" if kind == "eval" else f"{kind}: "
        self._attempt.say(f"step {step}  epoch {self._epoch(step):.2f}  {what}{messages.result_line(dict(result))}")
        self._write(kind, step, {**result, "seconds": round(self._evaluation_seconds, 3), **also()})
        return self._epoch(step)

    def _epoch(self, step: int) -> float:
        return round(step * self._batch_size / self._epoch_length, 6)

    def _write(self, kind: str, step: int, fields: dict[str, Any]) -> None:
        self._metrics.write({"kind": kind, "step": step, "epoch": self._epoch(step), **fields, "time": now()})
