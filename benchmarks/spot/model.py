"""Traces of machines that are taken away, and what a way of saving makes of one: simulated save by save."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitstop.errors import UserError
from pitstop.files import read_json

ROUNDING = 1e-9  # of sums of floats, in seconds: far below a step


@dataclass(frozen=True)
class Trace:
    """When a machine was there, and when it was not, in turns: each period of `up_seconds` ends without notice."""

    zone: str
    up_seconds: tuple[float, ...]
    down_seconds: tuple[float, ...]

    def squeezed(self, periods: int, seconds: float) -> tuple["Trace", float]:
        """The first periods in `seconds` of up time, and by what time was divided; never stretched."""
        first = self.up_seconds[:periods]
        scale = max(1.0, sum(first) / seconds)
        return Trace(self.zone, tuple(up / scale for up in first), ()), scale


def read_traces(path: Path) -> list[Trace]:
    """The zones of a file {"source": ..., "zones": {name: {"up_seconds": [...], "down_seconds": [...]}}}.

    Raises:
        UserError: it cannot be read, or is not of that form.
    """
    try:
        zones = read_json(path)["zones"]
        traces = [Trace(name, _durations(zone["up_seconds"]), _durations(zone["down_seconds"]))
                  for name, zone in zones.items()]  # fmt: skip
        if not traces or not all(trace.up_seconds for trace in traces):
            raise ValueError("no period in which the machine was up")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--trace {path}: {type(error).__name__}: {error}. JSON as in benchmarks/trace-example.json was expected: "
            '{"source": "...", "zones": {"<name>": {"up_seconds": [...], "down_seconds": [...]}}}'
        ) from error
    return traces


def _durations(values: Iterable[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a duration is negative or not finite")
    return numbers


def generated(seed: int = 0, periods: int = 30, up: float = 7200.0, down: float = 1800.0, gap: int = 32) -> str:
    """benchmarks/trace-example.json: exponential times of mean `up` and `down` seconds, in multiples of `gap`, which is
    how often the real traces have looked."""
    chance = random.Random(seed)

    def durations(number: int, mean: float) -> list[int]:
        return [gap * max(1, round(chance.expovariate(1 / mean) / gap)) for _ in range(number)]

    zone = {"gap_seconds": gap, "up_seconds": durations(periods, up), "down_seconds": durations(periods + 1, down)}
    source = f"generated: exponential, mean {up:g} s up and {down:g} s down, seed {seed}"
    return json.dumps({"source": source, "zones": {"generated": zone}}, indent=1) + "\n"


def young(cost_seconds: float, mtbf_seconds: float, write_seconds: float) -> float:
    """Seconds between two saves, as `--save_every auto` takes them: Young's, and never shorter than the write."""
    return max(math.sqrt(2 * cost_seconds * mtbf_seconds), write_seconds)


@dataclass(frozen=True)
class Policy:
    """How a training saves. A save stops the steps for `stall_seconds`, delays those beside the write by
    `slowdown_seconds` in all, and is durable `stall_seconds + write_seconds` after its begin."""

    restart_seconds: float  # from the start of the process to its first new step
    step_seconds: float
    first_steps: int  # from the start of an attempt to its first save
    steps: int  # from one save to the next
    stall_seconds: float
    slowdown_seconds: float = 0.0
    write_seconds: float = 0.0


def by_clock(
    restart: float, step: float, *, first: float, interval: float, stall: float, slowdown: float, write: float
) -> Policy:
    """Saves begin every `interval` seconds, the first `first` seconds after the restart: at the next end of a step."""
    between = math.ceil((interval - stall - slowdown) / step - ROUNDING)
    before = math.ceil(first / step - ROUNDING)
    return Policy(restart, step, max(1, before), max(1, between), stall, slowdown, write)


@dataclass(frozen=True)
class Outcome:
    """What became of paid seconds: they add up. Steps that were cut short are among `redone_seconds`."""

    paid_seconds: float = 0.0
    useful_seconds: float = 0.0  # in steps that counted
    restart_seconds: float = 0.0
    save_seconds: float = 0.0
    redone_seconds: float = 0.0
    kept_steps: int = 0
    redone_steps: int = 0

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def goodput(self) -> float:
        return self.useful_seconds / self.paid_seconds if self.paid_seconds else 0.0


def attempt(policy: Policy, up_seconds: float) -> Outcome:
    """One process, from its start to the kill at the end of `up_seconds`."""
    if up_seconds <= policy.restart_seconds:
        return Outcome(paid_seconds=up_seconds, restart_seconds=up_seconds)
    at, done, kept, saving = policy.restart_seconds, 0, 0, 0.0
    steps, step, end = policy.first_steps, policy.step_seconds, up_seconds + ROUNDING
    while at + steps * step <= end:
        at += steps * step
        done += steps
        if at + policy.stall_seconds + policy.write_seconds <= end:
            kept = done
        cost = min(policy.stall_seconds + policy.slowdown_seconds, max(0.0, up_seconds - at))
        at, saving, steps = at + cost, saving + cost, policy.steps
    done += max(0, int((end - at) / step))
    useful = kept * step
    redone = max(0.0, up_seconds - policy.restart_seconds - saving - useful)
    return Outcome(up_seconds, useful, policy.restart_seconds, saving, redone, kept, done - kept)


def simulate(policy: Policy, trace: Trace) -> Outcome:
    """The whole trace, one attempt after the other."""
    return sum((attempt(policy, up) for up in trace.up_seconds), Outcome())


def ideal(outcome: Outcome) -> Outcome:
    """The same steps without any failure, restart or save."""
    useful = outcome.useful_seconds
    return Outcome(paid_seconds=useful, useful_seconds=useful, kept_steps=outcome.kept_steps)
