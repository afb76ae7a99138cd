"""The clock of training: steps alone, so that goodput counts nothing else."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pitstop.config import RecipeConfig
from pitstop.meter import Meter
from pitstop.record import WALL_CLOCK_FIELDS, Metrics
from pitstop.session.rows import Rows

CPU = torch.device("cpu")


class Silent:
    """An attempt and a stream of batches, as far as rows ask for them."""

    batch_size = epoch_length = 4
    leads = False

    def stepped(self) -> None: ...
    def say(self, text: str) -> None: ...
    def row(self, step: int, text: str, left: str) -> None: ...


def test_evaluations_and_saves_are_no_steps() -> None:
    nobody = cast(Any, Silent())
    rows = Rows(Metrics(None, 1), nobody, nobody, 10, CPU)
    for _ in range(2):
        time.sleep(0.05)
        rows.stepped()
    before = rows.clock
    assert before.steps == 2
    assert before.seconds >= 0.1
    time.sleep(0.2)  # an evaluation: a heartbeat may look now
    assert rows.clock == before
    rows.evaluation("eval", 2, {"accuracy": 0.5}, dict)
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
        self.run = SimpleNamespace(meter=Meter([{"attempt": 1, "up": 1000.0}], price=3.6), attempt=1)

    def say(self, text: str) -> None:
        self.said.append(text)

    def row(self, step: int, text: str, left: str) -> None:
        self.rows.append((text, left))


def test_the_outlook_comes_after_a_minute_and_counts_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, age = Spoken(), [59.0]
    monkeypatch.setattr("pitstop.session.rows.process_age", lambda: age[0])
    rows = Rows(Metrics(None, 1), cast(Any, attempt), cast(Any, attempt), 101, CPU)  # each step is an epoch

    def train(step: int) -> None:
        rows._seconds += 2.0  # instead of waiting
        rows.stepped()
        rows.train(step, 0.1, {})

    train(1)
    assert attempt.said == []
    assert attempt.rows[0][1] == "3:20"
    rows._tick -= 1.0
    rows.evaluation("eval", 1, {"accuracy": 0.5}, dict)
    rows.resume()
    attempt.said.clear()
    age[0] = 60.0
    train(2)
    train(3)
    assert [line.split(" done by ")[0] for line in attempt.said] == ["at this speed"]
    assert attempt.rows[1][1] == "4:57"  # 99 steps of 2 s, 99 evaluations of 1 s
    assert attempt.rows[1][0].endswith(", 1.30 yuan")


def test_a_train_row_says_the_bill_and_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 100 s of this process, 40 of them in steps, after 50 s of an attempt that came to nothing: 40 / 150."""
    monkeypatch.setattr("pitstop.session.rows.process_age", lambda: 100.0)
    monkeypatch.setattr("pitstop.session.rows.gpu_use", lambda device: {"gpu_utilization": 97.0, "on": device})
    for price, costs in ((36.0, {"cost": 1.5}), (0.0, {})):
        path, attempt = tmp_path / f"{price}.jsonl", Spoken()
        metrics = Metrics(path, 1)
        metrics.open_at(0)
        events = [{"attempt": 1, "up": 50.0}, {"attempt": 2, "up": 55.0, "event": "start", "step": 0}]
        attempt.run = SimpleNamespace(meter=Meter(events, price=price), attempt=2)
        rows = Rows(metrics, cast(Any, attempt), cast(Any, attempt), 8, cast(Any, "the GPU"))
        for step in (1, 2):
            rows._seconds += 20.0
            rows.stepped()
            metrics.add({"loss": torch.tensor(0.5)})
            rows.train(step, 0.1, {"media": {"x": []}} if step == 1 else {})
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        expected = {"goodput": pytest.approx(40 / 150, abs=1e-3), "gpu_utilization": 97.0, "on": "the GPU"} | costs
        assert {key: second.get(key) for key in expected} == expected
        assert ("cost" in second) == bool(costs)
        assert first["goodput"] == pytest.approx(20 / 150, abs=1e-3)
        assert (first["media"], "media" in second) == ({"x": []}, False)
        assert set(second) - {"kind", "step", "epoch", "loss", "lr", "on"} <= set(WALL_CLOCK_FIELDS)


def test_a_rank_that_writes_nothing_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitstop.session.rows.gpu_use", lambda device: pytest.fail("it was asked"))
    nobody = cast(Any, Silent())
    nobody.config, nobody.total_steps = RecipeConfig(), 10
    rows = Rows(Metrics(None, 1), nobody, nobody, 10, CPU)
    rows.stepped()
    rows.train(1, 0.1, {})


def test_what_an_evaluation_has_besides_is_not_in_its_time(tmp_path: Path) -> None:
    metrics, nobody = Metrics(tmp_path / "m.jsonl", 1), cast(Any, Silent())
    metrics.open_at(0)
    rows = Rows(metrics, nobody, nobody, 10, CPU)

    def slowly() -> dict[str, Any]:
        time.sleep(0.3)
        return {"class_accuracy": {"a": 0.5}}

    rows.evaluation("test", 4, {"accuracy": 0.5}, slowly)
    row = json.loads((tmp_path / "m.jsonl").read_text())
    assert row["seconds"] < 0.25
    assert (row["kind"], row["accuracy"], row["class_accuracy"]) == ("test", 0.5, {"a": 0.5})
