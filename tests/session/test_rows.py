"""The clock of training: steps alone, so that goodput counts nothing else."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pitstop.config import RecipeConfig
from pitstop.record import Metrics
from pitstop.session.rows import Rows


class Silent:
    """An attempt and a stream of batches, as far as rows ask for them."""

    batch_size = epoch_length = 4

    def stepped(self) -> None: ...
    def say(self, text: str) -> None: ...
    def row(self, step: int, text: str, left: str) -> None: ...


def test_evaluations_and_saves_are_no_steps() -> None:
    nobody = cast(Any, Silent())
    rows = Rows(Metrics(None, 1), nobody, nobody, 10)
    for _ in range(2):
        time.sleep(0.05)
        rows.stepped()
    before = rows.clock
    assert before.steps == 2
    assert before.seconds >= 0.1
    time.sleep(0.2)  # an evaluation: a heartbeat may look now
    assert rows.clock == before
    rows.evaluation("eval", 2, {"accuracy": 0.5})
    rows.resume()
    time.sleep(0.05)
    rows.stepped()
    rows.resume()
    assert rows.clock.steps == 3
    assert rows.clock.seconds == pytest.approx(before.seconds + 0.05, abs=0.04)


class Spoken(Silent):
    """An attempt that is paid for, and what it says."""

    leads, total_steps = True, 100
    config = RecipeConfig(price=3.6, eval_every=1, currency="yuan")

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rows: list[tuple[str, str]] = []
        self.run = SimpleNamespace(meter=SimpleNamespace(paid_seconds=1000.0))

    def say(self, text: str) -> None:
        self.said.append(text)

    def row(self, step: int, text: str, left: str) -> None:
        self.rows.append((text, left))


def test_the_outlook_comes_after_a_minute_and_counts_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, age = Spoken(), [59.0]
    monkeypatch.setattr("pitstop.session.rows.process_age", lambda: age[0])
    rows = Rows(Metrics(None, 1), cast(Any, attempt), cast(Any, attempt), 101)  # each step is an epoch

    def train(step: int) -> None:
        rows._seconds += 2.0  # instead of waiting
        rows.stepped()
        rows.train(step, 0.1)

    train(1)
    assert attempt.said == []
    assert attempt.rows[0][1] == "3:20"
    rows._tick -= 1.0
    rows.evaluation("eval", 1, {"accuracy": 0.5})
    rows.resume()
    attempt.said.clear()
    age[0] = 60.0
    train(2)
    train(3)
    assert [line.split(" done by ")[0] for line in attempt.said] == ["at this speed"]
    assert attempt.rows[1][1] == "4:57"  # 99 steps of 2 s, 99 evaluations of 1 s
    assert attempt.rows[1][0].endswith(", 1.30 yuan")
