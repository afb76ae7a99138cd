"""The bill: what a run has cost over all its attempts, from the lines of events.jsonl alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]


@dataclass
class _Attempt:
    up_seconds: float = 0.0  # of the process, at its last sign of life
    price: float | None = None  # per hour; None: it did not say, or in another currency
    trained_seconds: float = 0.0  # in steps
    first: int | None = None  # the step at which it began to train
    last: int = 0


class Meter:
    """Adds up events, in the order in which they were written: those of earlier attempts, then this one's.

    What is paid is the time from the start of each process to its last sign of life: on the monotonic clock (`up`), so
    that no jump of the wall clock changes the bill. Between attempts nothing is paid. A step that was done again counts
    once; the time of those that are lost is taken to be that of the attempt's other steps.

    Args:
        price: per hour; of this attempt, and of those that did not say theirs.
        currency: of the sum. What was paid in another one counts at `price`.
    """

    def __init__(self, events: Iterable[Event] = (), *, price: float = 0.0, currency: str = "") -> None:
        self.price, self.currency = price, currency
        self._begun: dict[int, int] = {}  # two disks that came together may both have an attempt 2
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._counts = {"saves": 0, "restores": 0}
        self._stall_seconds = 0.0
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """One line of events.jsonl; what another version wrote otherwise is passed over."""
        number, kind = event.get("attempt"), event.get("event")
        if not isinstance(number, int):
            return
        self._begun[number] = self._begun.get(number, 0) + (kind == "attempt")
        attempt = self._attempts.setdefault((number, self._begun[number]), _Attempt())
        if kind == "attempt":
            attempt.price = price_of(event, self.currency)
        attempt.up_seconds = max(attempt.up_seconds, _number(event, "up"))
        attempt.trained_seconds = max(attempt.trained_seconds, _number(event, "trained"))
        step = int(_number(event, "step"))
        if kind == "start":
            attempt.first = step
        attempt.last = max(attempt.last, step)
        if kind in ("save", "restore"):
            self._counts[f"{kind}s"] += 1
            self._stall_seconds += _number(event, "stall_seconds")

    def _kept(self) -> tuple[float, int]:
        """(seconds in steps that counted, steps that were done again)."""
        seconds, redone, later = 0.0, 0, None  # later: the earliest step at which an attempt after it began
        for _, attempt in sorted(self._attempts.items(), reverse=True):
            if attempt.first is None:  # it did not come to train
                continue
            done = attempt.last - attempt.first
            kept = max(0, min(attempt.last, later if later is not None else attempt.last) - attempt.first)
            seconds += attempt.trained_seconds * kept / done if done else 0.0
            redone += done - kept
            later = attempt.first if later is None else min(later, attempt.first)
        return seconds, redone

    @property
    def paid_seconds(self) -> float:
        return sum(attempt.up_seconds for attempt in self._attempts.values())

    def cost(self) -> float:
        """In units of the currency; a price is per hour of the whole machine."""
        attempts = self._attempts.values()
        return sum((self.price if one.price is None else one.price) * one.up_seconds / 3600 for one in attempts)

    def spent(self, budget: float) -> str:
        """Why --budget asks for a stop, or nothing."""
        if not budget or self.cost() < budget:
            return ""
        return (
            f"the budget of {budget:g} {self.currency} is spent: {self.cost():.2f} in {self.paid_seconds / 3600:.2f} h"
        )

    def by_now(self, attempt: int, *, up: float, step: int, trained: float) -> dict[str, float]:
        """What a row says of the bill: goodput, and the cost up to now where an hour has a price."""
        self.add({"attempt": attempt, "up": up, "step": step, "trained": trained})
        told = self.report()
        return {name: told[name] for name in ("goodput", "cost") if name != "cost" or told["cost"]}

    def report(self) -> dict[str, Any]:
        """Fields of status.json. `goodput`: time in steps that counted over all paid time."""
        useful, redone = self._kept()
        paid = self.paid_seconds
        return {
            "paid_seconds": round(paid, 1),
            "price": self.price,
            "cost": round(self.cost(), 4),
            "currency": self.currency,
            "goodput": round(useful / paid, 4) if paid else 0.0,
            "redone_steps": redone,
            **self._counts,
            "stall_seconds": round(self._stall_seconds, 3),
        }


def price_of(event: Event, currency: str) -> float | None:
    """Of an hour, as the line that begins an attempt has it; None: it does not say, or in another currency."""
    price = event.get("price")
    return float(price) if isinstance(price, int | float) and event.get("currency") == currency else None


def _number(event: Event, name: str) -> float:
    value = event.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
