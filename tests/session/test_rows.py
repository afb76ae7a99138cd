"""The clock of training: steps alone, so that goodput counts nothing else."""

import time
from typing import Any, cast

import pytest

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
    rows.evaluation(2, {"accuracy": 0.5})
    time.sleep(0.05)
    rows.stepped()
    rows.resume()
    assert rows.clock.steps == 3
    assert rows.clock.seconds == pytest.approx(before.seconds + 0.05, abs=0.04)
