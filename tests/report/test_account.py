"""Where the paid minutes went, by hand for a run of three attempts; and whether the bits are still the same."""

import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import EVENTS, SHAPE, write_run

from pitstop.meter import Meter
from pitstop.report import account
from pitstop.report.read import read


def test_by_hand(tmp_path: Path) -> None:
    first, second, third = account.attempts(read(write_run(tmp_path / "run")))
    assert first.seconds == pytest.approx(
        {"startup": 10, "restore": 0, "steps": 8, "redone": 8, "saves": 0.5, "evaluations": 0, "rest": 3.5}
    ), "16 of 32 steps were done again: attempt 3 began at 16"
    assert (first.first, first.last, first.end, first.waited_seconds) == (0, 32, "killed", 0)
    assert second.seconds == pytest.approx(
        {"startup": 5, "restore": 0, "steps": 0, "redone": 0, "saves": 0, "evaluations": 0, "rest": 0}
    )
    assert (second.first, second.end, second.waited_seconds) == (None, "killed", 70), "from second 30 to second 100"
    assert third.seconds == pytest.approx(
        {"startup": 9, "restore": 2, "steps": 22, "redone": 0, "saves": 1, "evaluations": 4, "rest": 7}
    )
    assert (third.end, third.waited_seconds) == ("finished", 95)
    assert [attempt.cost for attempt in (first, second, third)] == pytest.approx([0.03, 0.005, 0.045]), "3.6 an hour"


def test_the_parts_are_the_whole_as_the_meter_has_it(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run"))
    attempts, bill = account.attempts(run), Meter(EVENTS, price=3.6, currency="CNY").report()
    assert account.totals(run) == bill
    assert sum(attempt.paid_seconds for attempt in attempts) == pytest.approx(bill["paid_seconds"])
    assert sum(attempt.seconds["steps"] for attempt in attempts) / bill["paid_seconds"] == pytest.approx(
        bill["goodput"]
    )
    assert bill["redone_steps"] == 16


def test_the_last_attempt_of_a_run_that_goes_on_has_no_end_yet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", events=EVENTS[:-1], status={"state": "running"})
    assert [attempt.end for attempt in account.attempts(read(run))] == ["killed", "killed", ""]


def test_lines_of_another_version_or_none(tmp_path: Path) -> None:
    strange: list[dict[str, Any]] = [{"event": "start", "attempt": "one"}, {"attempt": 1}, {"attempt": 1, "time": "?"}]
    assert account.attempts(read(write_run(tmp_path / "none", events=[]))) == []
    (attempt,) = account.attempts(read(write_run(tmp_path / "strange", events=strange)))
    assert attempt.paid_seconds == 0


@pytest.mark.parametrize("event", ["shape_changed", "accepted_change"])
def test_not_exact_since(tmp_path: Path, event: str) -> None:
    changes = ["device: NVIDIA A100 -> NVIDIA A10G", "threads: 8 -> 4", "odd"]
    lines = [*EVENTS, {"event": event, "attempt": 3, "changes": changes}, {"event": event, "attempt": 4, "changes": []}]
    found = account.exact(read(write_run(tmp_path / "run", events=lines)))
    assert found == account.Exact(False, 3, ("NVIDIA A10G, was NVIDIA A100", "threads 4, was 8", "odd"))


def test_exact_on_cuda_only_where_it_was_asked_for(tmp_path: Path) -> None:
    def told(number: int, **shape: Any) -> account.Exact:
        lines = [event | ({"shape": SHAPE | shape} if "shape" in event else {}) for event in EVENTS]
        return account.exact(read(write_run(tmp_path / str(number), events=lines)))

    assert told(1).yes
    assert told(2, cuda="13.0", deterministic=True).yes
    assert told(3, cuda="13.0", deterministic=False).since == 3
    uninterrupted = [event for event in EVENTS if event["attempt"] == 1]
    assert account.exact(read(write_run(tmp_path / "4", events=uninterrupted))).yes


@pytest.mark.parametrize("damage", ["missing", "no start", "from the middle", "a broken line"])
def test_whether_it_is_exact_is_not_known(tmp_path: Path, damage: str) -> None:
    kept = {"no start": EVENTS[:1], "from the middle": EVENTS[6:]}.get(damage, EVENTS)
    run = write_run(tmp_path / "run", events=kept)
    if damage == "missing":
        (run / "events.jsonl").unlink()
    if damage == "a broken line":
        text = (run / "events.jsonl").read_text()
        (run / "events.jsonl").write_text(text.replace('"restore", ', '"restore" '))
    assert account.exact(read(run)) == account.Exact(None)


def test_whether_it_is_exact_is_told_at_once_after_many_restarts(tmp_path: Path) -> None:
    """Each attempt was once worked out anew at every restore: 28 s for 400 of them."""
    third = [event for event in EVENTS if event["attempt"] == 3]
    lines = EVENTS + [event | {"attempt": number} for number in range(4, 301) for event in third]
    run = read(write_run(tmp_path / "run", events=lines))
    begun = time.process_time()
    assert account.exact(run).yes
    assert time.process_time() - begun < 0.5
