"""What a run says, also of results that are no numbers: status.json has them as text."""

import shlex
from pathlib import Path

import pytest

from pitstop.session import messages


def test_a_result() -> None:
    line = messages.result_line({"loss": 0.09812, "accuracy": 0.9722, "accuracy_mirror": 0.975})
    assert line == "accuracy 97.22 %, accuracy_mirror 97.50 %, loss 0.0981"


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_finished_run_whose_loss_is_no_number(value: str) -> None:
    """A traceback after the last paid step, and at each start of the finished run."""
    status = {"state": "finished", "total_steps": 26, "attempt": 2, "result": {"loss": value, "accuracy": 0.1}}
    text = messages.finished(Path("runs/r"), status)
    assert f"accuracy 10.00 %, loss {value}" in text
    assert "26 steps in 2 attempts" in text


def test_the_next_commands_can_be_typed() -> None:
    lines = messages.finished(Path("my runs/r"), {"result": {"accuracy": 0.1}}).splitlines()
    typed = [shlex.split(line[line.index("pitstop ") :]) for line in lines if "pitstop " in line]
    assert [words[1:3] for words in typed] == [[name, "my runs/r"] for name in ("report", "predict", "export")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (3723.9, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert messages.duration(seconds) == text
