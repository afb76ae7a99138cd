"""The arithmetic of an estimate; tests/test_session.py measures one against a real run."""

from datetime import datetime

import pytest
import torch

from pitstop.config import RecipeConfig
from pitstop.session import estimate
from pitstop.session.estimate import Estimate, Measured, at, clock_time, describe, forecast, largest_epochs

NOON = datetime(2026, 11, 24, 12, 0, 0)
MEASURED = Measured(start=10.0, step=0.5, evaluation=4.0, end=6.0)


def test_clocks() -> None:
    assert clock_time("08:00", NOON) == datetime(2026, 11, 25, 8)
    assert clock_time("12:01", NOON) == datetime(2026, 11, 24, 12, 1)
    assert clock_time("12:00", NOON) == datetime(2026, 11, 25, 12)
    assert at(3600.0, NOON) == "13:00"
    assert at(15.5 * 3600, NOON) == "Wed 03:30"


def test_a_forecast_counts_what_was_paid() -> None:
    assert forecast(1800.0, 1.0, RecipeConfig(price=2.0), NOON) == "done by 12:30, 2.00 CNY"
    assert forecast(1800.0, 1.0, RecipeConfig(), NOON) == "done by 12:30, 1.00 CNY"
    assert forecast(1800.0, 0.0, RecipeConfig(), NOON) == "done by 12:30"


def test_the_most_epochs_fit_and_one_more_does_not() -> None:
    def whole(epochs: float) -> float:  # 100 steps an epoch, an evaluation every 2
        return MEASURED.run(round(100 * epochs), int(epochs / 2))

    for seconds in (120.0, 1000.0, 5000.0):
        epochs = largest_epochs(MEASURED, seconds, 100.0, 2.0)
        assert whole(epochs) <= seconds < whole(epochs + 2)
    assert largest_epochs(MEASURED, 42.0, 100.0, 2.0) == 0.5
    assert largest_epochs(MEASURED, 16.0, 100.0, 2.0) == 0
    assert largest_epochs(MEASURED, 15.0, 100.0, 0.0) == 0


def test_the_words() -> None:
    config = RecipeConfig(price=2.0, epochs=10, eval_every=2, batch_size=100, finish_by="12:10", budget=1.0)
    disk = {"disk": "400 MB, 20,000 MB free"}
    text = describe(
        MEASURED, config, steps=1000, evaluations=4, steps_per_epoch=100.0, disk=disk, memory_bytes=10**9, now=NOON
    )
    assert "12:08, 8:52 after now" in text  # 10 + 500 + 16 + 6 = 532 s
    assert "0.30 CNY" in text
    assert "this fits; the most is --epochs 11" in text
    assert "1.00 GB" in text
    assert "--budget 1" in text
    assert "20,000 MB free" in text


class Ticks:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("total", [1000, 3])
def test_what_is_measured(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    monkeypatch.setattr(estimate, "time", clock)
    one = Estimate(total, torch.device("cpu"), start_seconds=7.0)
    assert one.steps == min(total, 25)
    looks = 0
    for step in range(one.steps):
        if one.wants_evaluation():
            looks += 1
            clock.now += 3.0
            one.evaluated()
        clock.now += 2.0 if step < 5 else 0.5  # the first are slow
        one.stepped()
    clock.now += 9.0
    assert looks == 1
    start_seconds = 7.0 + (5 * (2.0 - 0.5) if total == 1000 else 0.0)
    step_seconds = 0.5 if total == 1000 else pytest.approx(3.5, abs=1.5)
    assert one.measured() == Measured(start_seconds, step_seconds, 3.0, 9.0 + estimate.LEAVING_SECONDS)
