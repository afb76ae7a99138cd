"""The wall clock jumps: saves, limits, the bill and the order of checkpoints do not follow it."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from faults.harness import TINY, Run, assert_same

from pitstop.files import read_lines

JUMPS = Path(__file__).with_name("jumps.py")
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
# All of these would stop the run at once, or save in every step, if an hour passed.
LIMITS = ("--max_hours", "0.5", "--price", "1000", "--budget", "300", "--save_every", "30m")


def assert_clock_jumped(run: Run) -> None:
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in read_lines(run.path / "events.jsonl")]
    assert any(before - after > 1800 for before, after in itertools.pairwise(times)), "the clock did not jump"


def assert_bill(run: Run, seconds: float) -> None:
    """`seconds`: for which the processes of the run were there, by this process's monotonic clock."""
    status = run.status()
    assert 0 < status["paid_seconds"] <= seconds + 0.2  # it is rounded, and the kernel counts in ticks
    assert abs(status["cost"] - status["paid_seconds"] * status["price"] / 3600) < 0.1
    assert 0 < status["goodput"] <= 1


def test_limits_are_not_reached_early(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*LIMITS, recipe=JUMPS, STEP_SECONDS="0.05")
    begun = time.monotonic()
    run.finish()
    assert_bill(run, time.monotonic() - begun)
    assert_clock_jumped(run)
    assert [event["step"] for event in run.events("save")] == [26]
    assert_same(run, clean())


def test_saves_by_the_clock_and_kills(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Saves come neither in every step nor never."""
    run = tiny("--save_every", "0.3s", recipe=JUMPS, STEP_SECONDS="0.05")
    begun = time.monotonic()
    run.killed("step:13")
    run.killed("step:20")
    run.finish()
    seconds = time.monotonic() - begun
    assert_bill(run, seconds)
    assert_clock_jumped(run)
    assert 2 <= len(run.events("save")) <= seconds / 0.3 + 1
    assert_same(run, clean())


def test_the_order_of_checkpoints_is_that_of_steps(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The older one looks newer, by a year."""
    run = tiny("--save_every", "5steps")
    run.killed("step:13")
    folder = run.path / "checkpoints"
    for name, second in (("step-00000005", 2e9), ("step-00000010", 1.0)):
        for path in (*(folder / name).iterdir(), folder / name):
            os.utime(path, (second, second))
    run.finish("--keep", "1")
    assert [event["step"] for event in run.events("restore")] == [10]
    assert run.checkpoints() == ["step-00000026"]
    assert_same(run, clean())


def jump(file: Path, over: threading.Event) -> None:
    """Forth, back, and over all ever further back: of two moments 0.1 s apart the later one is before the other."""
    for rounds, seconds in itertools.product(range(1000), (0, 3600, -3600)):
        temporary = file.with_suffix(".new")
        temporary.write_text(f"{seconds - 10_000 * rounds:+d}\n")
        temporary.replace(file)
        if over.wait(0.02):
            return


@pytest.mark.slow
def test_a_clock_that_jumps_for_every_library(
    tmp_path: Path, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """As above, by libfaketime: for C code, too. Only the wall clock: the monotonic one jumps on no machine."""
    library = next((path for path in LIBRARIES if os.path.exists(path)), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    run, file, over = tiny(*LIMITS), tmp_path / "clock", threading.Event()
    environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "STEP_LOG": str(run.folder / "steps.jsonl"),
        "LOCAL_WORLD_SIZE": str(os.cpu_count()),  # one thread, as in the other run
        "CUDA_VISIBLE_DEVICES": "",
    }
    jumper = threading.Thread(target=jump, args=(file, over))
    jumper.start()
    try:
        begun = time.monotonic()
        command = [sys.executable, TINY, "--name", "r", "--tracker", "none", "--precision", "fp32", *run.flags]
        ended = subprocess.run(
            command, cwd=run.folder, env=os.environ | environment, capture_output=True, text=True, timeout=120
        )
        seconds = time.monotonic() - begun
    finally:
        over.set()
        jumper.join()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_bill(run, seconds)
    assert_clock_jumped(run)
    assert [event["step"] for event in run.events("save")] == [26]
    assert_same(run, clean())
