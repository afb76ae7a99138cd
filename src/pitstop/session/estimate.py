"""Time and money beforehand: --estimate, and when a run is going to be done."""

import resource
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import torch

from pitstop.clocks import duration
from pitstop.config import RecipeConfig, crossings
from pitstop.plan import Stream

WARM_STEPS, STEPS = 5, 20  # the first are slow: memory is allocated, kernels are chosen
LEAVING_SECONDS = 2.0  # so long Python takes to unload torch, and accelerate to follow (1.4 to 2.8 measured, 2 cores)


def clock_time(text: str, now: datetime) -> datetime:
    """The next time at which a clock shows `text` ("08:00"). Raises ValueError."""
    hour, minute = map(int, text.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)


def at(seconds: float, now: datetime) -> str:
    """`21:40`, or `Thu 03:15` on another day."""
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %H:%M}"


def forecast(seconds_left: float, paid: float, config: RecipeConfig, now: datetime) -> str:
    """`done by 21:40, 0.30 CNY`: what has been `paid` counts too, in the same currency."""
    cost = paid + config.price * seconds_left / 3600
    return f"done by {at(seconds_left, now)}" + (f", {cost:.2f} {config.currency}" if cost else "")


@dataclass(frozen=True)
class Measured:
    """What a few real steps took, in seconds."""

    start: float  # from the command to the first step, and by how much the first steps are slower
    step: float
    evaluation: float
    end: float  # the last evaluation, what comes with it, and until the command is over

    def run(self, steps: int, evaluations: int) -> float:
        """Seconds of a whole run. The last evaluation is not among the `evaluations`."""
        return self.start + steps * self.step + evaluations * self.evaluation + self.end


class Estimate:
    """Twenty real steps and two evaluations, of which nothing is kept.

    The run is made so short that it comes to its end, which is timed as well: it may hold test-time augmentation.
    """

    def __init__(
        self, total_steps: int, device: torch.device, start_seconds: float, disk: Mapping[str, str] | None = None
    ) -> None:
        self.total_steps, self._disk = total_steps, disk or {}  # of the real run
        self.steps = min(total_steps, WARM_STEPS + STEPS)
        self._device, self._start = device, start_seconds
        self._begun = self._now()
        self._ticks: list[float] = []
        self._evaluation_began = self._evaluation = 0.0

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()

    def stepped(self) -> None:
        """A step is done."""
        self._ticks.append(self._now())

    def wants_evaluation(self) -> bool:
        """Once, when the first steps are over."""
        if self._evaluation_began or len(self._ticks) != min(WARM_STEPS, self.steps - 1):
            return False
        self._evaluation_began = self._now()
        return True

    def evaluated(self) -> None:
        """That evaluation is done; a later one is not counted."""
        if not self._evaluation:
            self._evaluation = self._now() - self._evaluation_began

    def measured(self) -> Measured:
        """To be called at the end of the run."""
        pairs = list(pairwise(self._ticks))
        # Of the later ones; the step after the evaluation holds it.
        steps = [b - a for a, b in pairs[WARM_STEPS:]] or [b - a for a, b in pairs] or [self._evaluation]
        step = statistics.median(steps)
        first = self._ticks[:WARM_STEPS]
        slower = max(0.0, first[-1] - self._begun - len(first) * step)  # than the later ones: a run has them too
        return Measured(self._start + slower, step, self._evaluation, self._now() - self._ticks[-1] + LEAVING_SECONDS)

    def text(self, config: RecipeConfig, stream: Stream) -> str:
        """What was measured, and what follows from it. To be called at the end of the run."""
        positions = (self.total_steps - 1) * stream.batch_size  # of the last step's start
        return describe(
            self.measured(),
            config,
            steps=self.total_steps,
            evaluations=crossings(config.eval_every, stream.epoch_length, positions),
            steps_per_epoch=stream.epoch_length / stream.batch_size,
            disk=self._disk,
            memory_bytes=peak_bytes(self._device),
            now=datetime.now(),
        )


def peak_bytes(device: torch.device) -> int:
    """Of memory: the GPU's if there is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def largest_epochs(measured: Measured, seconds: float, steps_per_epoch: float, eval_every: float) -> float:
    """The most epochs that are done within `seconds`, in whole ones if there is room for one, else in tenths."""
    each = steps_per_epoch * measured.step + (measured.evaluation / eval_every if eval_every else 0.0)
    epochs = (seconds - measured.start - measured.end) / each
    return float(int(epochs)) if epochs >= 1 else max(0, int(10 * epochs)) / 10


def describe(
    measured: Measured,
    config: RecipeConfig,
    *,
    steps: int,
    evaluations: int,
    steps_per_epoch: float,
    disk: Mapping[str, str],
    memory_bytes: int,
    now: datetime,
) -> str:
    """The estimate in words.

    Args:
        steps, evaluations: of the whole run; the last evaluation is not among them.
        disk: what is needed and what is free, by name.
    """
    seconds = measured.run(steps, evaluations)
    speed = config.batch_size / measured.step
    rows: dict[str, Any] = {
        "done": f"{at(seconds, now)}, {duration(seconds)} after now",
        "of that": f"start {measured.start:.0f} s; {steps:,} steps of {measured.step:.4f} s ({speed:,.0f} images/s); "
        f"{evaluations} evaluations of {measured.evaluation:.1f} s; the end {measured.end:.1f} s",
        "cost": f"{config.price * seconds / 3600:.2f} {config.currency} at {config.price:g} an hour"
        if config.price
        else "unknown: what does an hour cost? --price (or PITSTOP_PRICE)",
        "memory": f"{memory_bytes / 1e9:.2f} GB at most",
        **disk,
    }
    limits = {}
    if config.finish_by:
        limits[f"--finish_by {config.finish_by}"] = (clock_time(config.finish_by, now) - now).total_seconds()
    if config.budget:
        limits[f"--budget {config.budget:g}"] = 3600 * config.budget / config.price
    for limit, within in limits.items():
        epochs = largest_epochs(measured, within, steps_per_epoch, config.eval_every)
        fits = "this fits" if seconds <= within else f"{config.epochs:g} epochs do not fit"
        rows[limit] = f"{fits}; the most is --epochs {epochs:g}" if epochs else "not a tenth of an epoch fits"
    lines = [f"Estimate by {STEPS} steps on this machine, of which nothing is kept:"]
    return "\n".join([*lines, *(f"  {name:20} {value}" for name, value in rows.items())])
