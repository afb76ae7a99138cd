"""--estimate: real steps and a real end, and nothing is left."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Run, Warm

DIGITS = Path(__file__).resolve().parents[2] / "recipes" / "digits.py"
SMALL = ("--model", "test_resnet", "--image_size", "16", "--batch_size", "32", "--epochs", "6")


@pytest.mark.slow
def test_an_estimate_keeps_nothing(warm: Warm, tmp_path: Path) -> None:
    flags = ("--price", "3.6", "--finish_by", "08:00", "--budget", "100", "--eval_every", "2")
    run = Run(warm, tmp_path, *SMALL, *flags, recipe=DIGITS)
    job = run.go("--estimate")
    assert job.codes == [0], job.text
    assert not run.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out-1.txt"]
    found = re.search(r"(\d+) steps of ([\d.]+) s .*; (\d+) evaluations of ([\d.]+) s", job.text)
    assert found, job.text
    assert (int(found[1]), int(found[3])) == (270, 2)  # 1,437 images; at the end of epochs 2 and 4
    assert re.search(r"cost +\d+\.\d\d CNY at 3.6 an hour", job.text)
    assert re.search(r"--finish_by 08:00 +this fits; the most is --epochs \d+", job.text)
    assert re.search(r"free at /.* +[\d,]+ MB", job.text)


def test_it_is_short_and_evaluates_once_on_the_way(tiny: Callable[..., Run]) -> None:
    """25 steps of 510; whoever looks at an evaluation after five of them is there, after six there is none. And what
    came before the first step is counted."""
    run = tiny("--epochs", "60", "--estimate")
    hold = run.folder / "hold"
    job = run.start(KILL_AT="eval:6", HOLD_AT="begin", HOLD=str(hold))
    time.sleep(3)
    hold.with_suffix(".go").touch()
    assert job.wait().codes == [0], job.text
    found = re.search(r"start (\d+) s; ", job.text)
    assert found, job.text
    assert int(found[1]) >= 3
    assert [row["step"] for row in run.step_log()] == [*range(25)]
    assert "510 steps of " in job.text
    assert not run.path.exists()
    assert run.go(KILL_AT="eval:5").codes == [-signal.SIGKILL]


@pytest.mark.slow
def test_three_ranks_say_it_once(warm: Warm, tmp_path: Path) -> None:
    job = Run(warm, tmp_path, *SMALL, ranks=3, recipe=DIGITS).go("--estimate")
    assert job.codes == [0, 0, 0], job.text
    assert job.text.count("Estimate by") == 1
    assert "unknown: what does an hour cost?" in job.text
