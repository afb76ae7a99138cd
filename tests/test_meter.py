"""The bill, by cases that were worked out by hand, and by a count of every step."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pitstop.files import read_lines
from pitstop.meter import Meter


def event(
    attempt: int, kind: str, up: float, step: int | None = None, trained: float | None = None, **more: Any
) -> Any:
    fields = {"attempt": attempt, "event": kind, "up": up, "step": step, "trained": trained, **more}
    return {name: value for name, value in fields.items() if value is not None}


def attempt(number: int, first: int, last: int, *, trained: float, up: float, end: str = "heartbeat") -> list[Any]:
    """One that begins to train at `first`, two seconds after its start."""
    return [
        event(number, "attempt", 1.0),
        event(number, "start", 2.0, first, 0.0),
        event(number, end, up, last, trained),
    ]


def test_a_run_in_one_piece() -> None:
    """60 s at 36 an hour are 0.60; 40 s of them in steps."""
    events = attempt(1, 0, 100, trained=40, up=60, end="finished")
    report = Meter(events, price=36, currency="CNY").report()
    assert report == {
        "paid_seconds": 60.0,
        "price": 36,
        "cost": 0.6,
        "currency": "CNY",
        "goodput": 0.6667,
        "redone_steps": 0,
        "saves": 0,
        "restores": 0,
        "stall_seconds": 0.0,
    }


def test_a_crash_before_the_first_save() -> None:
    """20 s paid for nothing: 30 steps are done again."""
    events = attempt(1, 0, 30, trained=15, up=20) + attempt(2, 0, 100, trained=50, up=55)
    report = Meter(events).report()
    assert (report["paid_seconds"], report["redone_steps"]) == (75.0, 30)
    assert report["goodput"] == round(50 / 75, 4)


def test_steps_done_again_over_three_attempts() -> None:
    """0-50, 40-70, 60-100, half a second a step: ten and ten are done again, 40 + 20 + 40 count."""
    events = attempt(1, 0, 50, trained=25, up=30) + attempt(2, 40, 70, trained=15, up=20)
    events += attempt(3, 60, 100, trained=20, up=25)
    report = Meter(events).report()
    assert (report["paid_seconds"], report["redone_steps"]) == (75.0, 20)
    assert report["goodput"] == round((40 + 20 + 40) / 2 / 75, 4)


def test_an_older_checkpoint_is_used() -> None:
    """0-50, 40-80, and then 20-100, because that of 40 was bad: of the first 20 steps count, of the second none."""
    events = attempt(1, 0, 50, trained=25, up=30) + attempt(2, 40, 80, trained=20, up=25)
    events += attempt(3, 20, 100, trained=40, up=45)
    report = Meter(events).report()
    assert report["redone_steps"] == (50 - 20) + (80 - 40)
    assert report["goodput"] == round((20 + 80) / 2 / 100, 4)


def test_an_attempt_that_did_not_come_to_train_is_paid() -> None:
    refused = [event(2, "attempt", 1.0), event(2, "failed", 3.0)]
    events = attempt(1, 0, 50, trained=25, up=30) + refused + attempt(3, 50, 100, trained=25, up=27)
    report = Meter(events, price=3600).report()
    assert (report["paid_seconds"], report["cost"], report["redone_steps"]) == (60.0, 60.0, 0)
    assert report["goodput"] == round(50 / 60, 4)


def test_saves_and_restores_are_counted() -> None:
    events = attempt(1, 0, 50, trained=25, up=30)
    events += [event(1, "save", 31, 50, stall_seconds=0.25), event(1, "save", 32, 60, stall_seconds=0.5)]
    events += [event(2, "restore", 1, 60), event(2, "save_failed", 3, 70)]
    report = Meter(events).report()
    assert (report["saves"], report["restores"], report["stall_seconds"]) == (2, 1, 0.75)


def test_random_histories_against_a_count_of_every_step() -> None:
    """A step counts in the attempt that computed it last, unless a later one began before it."""
    chance = random.Random(5)
    for _ in range(200):
        events, computed, reached, paid = [], [], 0, 0.0
        for number in range(1, chance.randint(2, 7)):
            first = chance.randint(0, reached)
            last = chance.randint(first, first + 40)
            up = 2 + (last - first) * 0.5 + chance.random()
            events += attempt(number, first, last, trained=(last - first) * 0.5, up=up)
            computed.append((first, last))
            reached, paid = last, paid + up
        kept = sum(
            all(later > step for later, _ in computed[index + 1 :])
            for index, (first, last) in enumerate(computed)
            for step in range(first, last)
        )
        report = Meter(events).report()
        assert report["redone_steps"] == sum(last - first for first, last in computed) - kept
        assert report["goodput"] == pytest.approx(kept * 0.5 / paid, abs=1e-4)
        assert report["paid_seconds"] == pytest.approx(paid, abs=0.06)


def test_lines_one_by_one_are_the_same_as_all_at_once() -> None:
    events = attempt(1, 0, 50, trained=25, up=30) + attempt(2, 40, 80, trained=20, up=25)
    meter = Meter(price=10)
    for line in events:
        meter.add(line)
    assert meter.report() == Meter(events, price=10).report()


def test_wall_clocks_do_not_matter() -> None:
    events = attempt(1, 0, 50, trained=25, up=30)
    for line, time in zip(events, ("2031-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00", "nonsense"), strict=True):
        line["time"] = time
    assert Meter(events).paid_seconds == 30


def test_two_threads_may_write_their_lines_out_of_order() -> None:
    """The heartbeat's and the training's."""
    one, two, three = attempt(1, 0, 50, trained=25, up=30)
    late = event(1, "heartbeat", 29.0, 48, 24.0)
    assert Meter([one, two, three, late]).report() == Meter([one, two, late, three]).report()


def test_torn_and_foreign_lines(tmp_path: Path) -> None:
    """What a crash cut short, what another version wrote, what is nothing at all."""
    file = tmp_path / "events.jsonl"
    strange = [{"event": "x"}, {"attempt": "1", "up": 99}, {"attempt": 1, "up": "99"}, {"attempt": 1, "up": None}]
    strange += [{"attempt": None, "up": 99}, {"attempt": 1, "event": ["start"], "step": [7], "trained": {}}]
    good = attempt(1, 0, 50, trained=25, up=30)
    lines = [json.dumps(line) for line in [*good[:2], *strange, *good[2:]]]
    whole = "\n".join(["[1, 2]", "null", "\x00\x00", *lines, '{"attempt": 1, "event": "heartbeat", "up": 9'])
    file.write_text(whole)
    assert Meter(read_lines(file)).report() == Meter(good).report()
    file.write_text(whole + "\n" + json.dumps(event(1, "heartbeat", 40.0, 60, 30.0)) + "\n")
    assert Meter(read_lines(file)).paid_seconds == 40


def test_the_budget() -> None:
    """An hour at 8.50 is spent when it is over, not before; all attempts together."""
    events = attempt(1, 0, 50, trained=25, up=1800) + attempt(2, 50, 90, trained=20, up=1799)
    meter = Meter(events, price=8.5, currency="EUR")
    assert meter.spent(8.5) == ""
    meter.add(event(2, "heartbeat", 1800.0))
    assert meter.spent(8.5) == "the budget of 8.5 EUR is spent: 8.50 in 1.00 h"
    assert meter.spent(0) == "", "0: no limit"
    assert meter.spent(9) == ""


def test_nothing() -> None:
    report = Meter().report()
    assert (report["paid_seconds"], report["cost"], report["goodput"], report["redone_steps"]) == (0, 0, 0, 0)


def test_by_now() -> None:
    """A row is written between two events: 36 an hour, 80 s, 50 of them in steps. The events that come later count
    as if nobody had asked."""
    events = attempt(1, 0, 40, trained=20, up=30)
    asked, silent = (Meter(events, price=36) for _ in range(2))
    assert asked.by_now(1, up=80.0, step=100, trained=50.0) == {"goodput": 0.625, "cost": 0.8}
    assert asked.by_now(1, up=100.0, step=120, trained=60.0) == {"goodput": 0.6, "cost": 1.0}
    for later in attempt(2, 100, 150, trained=25, up=30, end="finished"):
        asked.add(later)
        silent.add(later)
    for meter in (asked, silent):
        meter.add(event(1, "save", 100.0, 120, 60.0))
    assert asked.report() == silent.report()
    assert set(Meter(events).by_now(1, up=80.0, step=100, trained=50.0)) == {"goodput"}


def test_two_attempts_of_one_number_are_both_paid() -> None:
    """What a machine did whose uploads never arrived, and what its successor did, once both are on one disk."""
    hours = (1, 3600), (2, 7200), (2, 1800)
    events = [{"event": kind, "attempt": number, "up": up} for number, up in hours for kind in ("attempt", "heartbeat")]
    assert Meter(events).paid_seconds == 3600 + 7200 + 1800


def test_each_attempt_at_its_own_price() -> None:
    """The next machine has another price; an old run did not say; another currency cannot be converted."""
    hours = [event(1, "heartbeat", 3600)]
    hours += [event(2, "attempt", 0.0) | {"price": 24.0, "currency": "CNY"}, event(2, "heartbeat", 3600)]
    hours += [event(3, "attempt", 0.0) | {"price": 5.0, "currency": "USD"}, event(3, "heartbeat", 3600)]
    hours += [event(4, "attempt", 0.0) | {"price": 1.0, "currency": "CNY"}, event(4, "heartbeat", 7200)]
    assert Meter(hours, price=1.0, currency="CNY").cost() == 1 + 24 + 1 + 2
    assert Meter(hours, price=0.0, currency="CNY").cost() == 24 + 2, "a resume without --price forgets nothing"
    assert "27" in Meter(hours, price=0.5, currency="CNY").spent(27)
