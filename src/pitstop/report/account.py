"""Where every paid minute went, and whether the bits are still those of a run that nobody interrupted: from
events.jsonl."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pitstop.meter import Event, Meter, price_of
from pitstop.report.read import Row, Run, number

PARTS = ("startup", "restore", "steps", "redone", "saves", "evaluations", "rest")  # of an attempt's paid seconds


@dataclass(frozen=True)
class Attempt:
    """One process lifetime, as its lines tell.

    Attributes:
        first, last: the steps between which it trained; `first` is None where it did not come to that.
        seconds: of each of PARTS; they add up to `paid_seconds`.
        waited_seconds: from the last sign of life of the attempt before to its own start; nobody pays for it.
        end: "finished", "stopped", "failed"; "killed" where it left no word; "" for the last one, if it may go on.
        shape: of the machine; empty where it did not come to train.
    """

    number: int
    begun: str
    first: int | None
    last: int
    seconds: dict[str, float]
    waited_seconds: float
    end: str
    reason: str
    cost: float
    shape: dict[str, Any]

    @property
    def paid_seconds(self) -> float:
        return sum(self.seconds.values())


def attempts(run: Run) -> list[Attempt]:
    """In the order of their numbers; what another version wrote otherwise is passed over."""
    events: dict[int, list[Event]] = {}
    for event in run.events:
        if isinstance(event.get("attempt"), int):
            events.setdefault(event["attempt"], []).append(event)
    found: list[Attempt] = []
    later = None  # the earliest step at which an attempt after it began: what lies beyond was done again
    begins = {number: _wall(lines[0], begin=True) for number, lines in events.items()}
    for number_, lines in sorted(events.items(), reverse=True):
        before = events.get(number_ - 1)
        until = begins.get(number_ + 1)
        attempt = _attempt(number_, lines, before, _evaluations(run.evals, begins[number_], until), later, run)
        later = attempt.first if later is None else min(later, attempt.first if attempt.first is not None else later)
        found.append(attempt)
    return found[::-1]


def _attempt(
    number_: int, lines: list[Event], before: list[Event] | None, evaluated: float, later: int | None, run: Run
) -> Attempt:
    start = next((event for event in lines if event.get("event") == "start"), None)
    end = next((event for event in lines[::-1] if event.get("event") in ("finished", "stopped", "failed")), {})
    first = int(number(start, "step") or 0) if start else None
    last = max([int(number(event, "step") or 0) for event in lines], default=0)
    begun, silent = _wall(lines[0], begin=True), _wall(before[-1]) if before else None
    paid = max(number(event, "up") or 0.0 for event in lines)
    is_last = run.status.get("attempt") == number_ and run.status.get("state") == "running"
    return Attempt(
        number=number_,
        begun=str(lines[0].get("time", "")),
        first=first,
        last=last,
        seconds=_seconds(lines, paid, first, last, later, evaluated),
        waited_seconds=max(0.0, (begun - silent).total_seconds()) if begun and silent else 0.0,
        end=str(end.get("event") or ("" if is_last else "killed")),
        reason=str(end.get("reason", "")),
        cost=_price(lines[0], run) * paid / 3600,
        shape=dict(start["shape"]) if start and isinstance(start.get("shape"), dict) else {},
    )


def _price(begun: Event, run: Run) -> float:
    """Of an hour of the attempt that began with this line; today's, where it does not say."""
    price = price_of(begun, str(run.status.get("currency", "")))
    return (number(run.status, "price") or 0.0) if price is None else price


def _seconds(
    lines: list[Event], paid: float, first: int | None, last: int, later: int | None, evaluated: float
) -> dict[str, float]:
    """Of each part. Parts are measured one by one, so the last ones take what the paid time leaves them."""
    begun = max(
        (number(event, "up") or 0.0 for event in lines if event.get("event") in ("start", "restore")), default=paid
    )
    restore = sum(number(event, "seconds") or 0.0 for event in lines if event.get("event") == "restore")
    trained = max(number(event, "trained") or 0.0 for event in lines)
    done = last - first if first is not None else 0
    kept = max(0, min(last, last if later is None else later) - (first or 0)) / done if done else 1.0
    wanted = {
        "startup": max(0.0, begun - restore),
        "restore": min(restore, begun),
        "steps": trained * kept,
        "redone": trained * (1 - kept),
        "saves": sum(number(event, "stall_seconds") or 0.0 for event in lines if event.get("event") == "save"),
        "evaluations": evaluated,
    }
    seconds, left = {}, paid
    for name, value in wanted.items():
        seconds[name] = min(value, left)
        left -= seconds[name]
    return seconds | {"rest": left}


def _wall(event: Event, *, begin: bool = False) -> datetime | None:
    """When the line was written, or (begin) when its process began."""
    try:
        moment = datetime.fromisoformat(str(event["time"]))
        return datetime.fromtimestamp(moment.timestamp() - (number(event, "up") or 0.0) * begin, moment.tzinfo)
    except (KeyError, ValueError, OverflowError):
        return None


def _evaluations(rows: list[Row], begun: datetime | None, until: datetime | None) -> float:
    """Seconds of the evaluations whose rows were written in that time. Those that a later attempt did again have no
    row: their time is in `rest`."""
    total = 0.0
    for row in rows:
        written = _wall(row)
        if written and begun and written >= begun and (until is None or written < until):
            total += number(row, "seconds") or 0.0
    return total


def totals(run: Run) -> dict[str, Any]:
    """The bill, by `Meter`: paid_seconds, cost, currency, price, goodput, redone_steps, saves, restores."""
    price, currency = number(run.status, "price") or 0.0, str(run.status.get("currency", ""))
    return Meter(run.events, price=price, currency=currency).report()


@dataclass(frozen=True)
class Exact:
    """Is the result, bit for bit, that of a run without interruptions? If not: since which attempt, and why. None: it
    is not known."""

    yes: bool | None
    since: int = 0
    why: tuple[str, ...] = ()


def exact(run: Run) -> Exact:
    """As `pitstop verify` tells it: by what was recorded. A GPU that was not asked for --deterministic is exact only
    where nothing interrupted it."""
    loose = False  # this attempt's machine: it does not compute the same bits again
    for event in run.events:
        number_ = event.get("attempt", 0)
        if event.get("event") == "start":
            shape = event.get("shape")
            loose = isinstance(shape, dict) and bool(shape.get("cuda")) and not shape.get("deterministic")
        if event.get("event") in ("shape_changed", "accepted_change"):
            changes = event.get("changes", [])
            return Exact(False, number_, tuple(map(_turned, changes if isinstance(changes, list) else [])))
        if event.get("event") == "restore" and loose:  # `start` comes before it
            return Exact(False, number_, ("CUDA, --deterministic false",))
    # Nothing speaks against it, which says something only where every line is there from step 0 on.
    start = next((event for event in run.events if event.get("event") == "start"), {})
    return Exact(True if number(start, "step") == 0 and "events.jsonl" not in run.damaged else None)


def _turned(change: object) -> str:
    """`device: A100 -> A10G` as `A10G, was A100`; `threads: 8 -> 4` as `threads 4, was 8`."""
    name, colon, values = str(change).partition(": ")
    old, arrow, new = values.partition(" -> ")
    if not colon or not arrow:
        return str(change)
    return f"{new}, was {old}" if name == "device" else f"{name} {new}, was {old}"
