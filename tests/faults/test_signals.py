"""Asked to stop: a checkpoint at this step, a status that launchers understand, the same bytes after the restart."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import TINY, Run, assert_same
from faults.holding import held, steps, stopped, until


@pytest.mark.parametrize(("name", "code", "restart"), [("TERM", 75, "now"), ("USR1", 75, "now"), ("INT", 76, "person")])
def test_a_signal(name: str, code: int, restart: str, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny()
    job = run.go(KILL_AT="step:11", KILL_SIGNAL=name)
    assert job.codes == [code], job.text
    assert "step-00000011" in run.checkpoints()
    status = run.status()
    assert (status["state"], status["restart"], status["step"]) == ("stopped", restart, 11)
    assert status["reason"] == f"SIG{name}"
    assert "stopped at step 11 of 26" in job.text
    run.finish()
    assert [event["step"] for event in run.events("restore")] == [11]
    assert_same(run, clean())


def test_a_signal_during_an_evaluation(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The checkpoint is that of the step after it, so the evaluation is in its rows once."""
    run = tiny()
    job = run.go(KILL_AT="eval:9", KILL_SIGNAL="TERM")
    assert job.codes == [75], job.text
    run.finish()
    assert_same(run, clean())


def test_a_signal_in_the_last_step_or_after_it(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Nothing is gained by stopping there: the run finishes, or is finished by the next start."""
    for instant in ("step:26", "eval:26", "finish:before"):
        run = tiny()
        if run.go(KILL_AT=instant, KILL_SIGNAL="TERM").code:
            run.finish()
        assert_same(run, clean())


@pytest.mark.parametrize("instant", ["prepared", "loading"])
def test_a_signal_before_there_is_anything_to_lose(
    instant: str, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny("--save_every", "5steps")
    run.killed("step:8")
    steps = len(run.step_log())
    job = run.go(KILL_AT=instant, KILL_SIGNAL="TERM")
    assert job.codes == [75], job.text
    assert len(run.step_log()) == steps
    run.finish()
    assert_same(run, clean())


def test_a_second_interrupt_means_at_once(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(STEP_SECONDS="0.5")
    job = run.start()
    until(lambda: steps(run) >= 2, job)
    job.signal(signal.SIGINT)
    assert not job.over.wait(0.05)
    job.signal(signal.SIGINT)
    job.wait()
    assert job.codes == [76], job.text
    assert run.checkpoints() == []
    assert run.status()["restart"] == "person"
    run.finish(STEP_SECONDS="0")
    assert_same(run, clean())


LEAVES_SLOWLY = """
import runpy, sys, time
from pathlib import Path
from pitstop.session.attempt import Attempt

def close(self, *arguments, real=Attempt.close):
    Path("closes").touch()
    time.sleep(0.5)
    real(self, *arguments)

Attempt.close = close
sys.argv[0] = {tiny!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    Path("leaves").touch()
    time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("name", "at", "flags", "code", "state"),
    [
        ("TERM", "prepared", (), 75, "stopped"),
        ("TERM", "step:4", (), 75, "stopped"),
        ("INT", "step:4", (), 76, "stopped"),
        ("TERM", "never", ("--seed", "1"), 2, "failed"),
        ("TERM", "never", (), 0, "finished"),
    ],
    ids=["early", "stopped", "interrupted", "refused", "finished before"],
)
def test_all_is_said_again_to_one_that_leaves(
    name: str, at: str, flags: tuple[str, ...], code: int, state: str, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    """As launchers do, whose terminal closes besides. What they do then goes by the exit code."""
    recipe = tmp_path / "leaves_slowly.py"
    recipe.write_text(LEAVES_SLOWLY.format(tiny=str(TINY)))
    run = tiny(recipe=recipe)
    if code == 0:
        run.finish()
    elif code == 2:
        run.killed("step:3")
    for file in ("closes", "leaves"):
        (run.folder / file).unlink(missing_ok=True)
    job = run.start(*flags, KILL_AT=at, KILL_SIGNAL=name)
    for file in ("closes", "leaves"):
        until((run.folder / file).exists, job)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            job.signal(number)
            time.sleep(0.02)
    assert job.wait().codes == [code], job.text
    assert run.status()["state"] == state
    assert "saving after this step" not in job.text.partition("stopped at")[2]


@pytest.mark.parametrize("slow", [0, 1])
def test_one_rank_waits_after_its_first_step_for_another(slow: int, tiny: Callable[..., Run]) -> None:
    """Neither has anything to lose before all have done that step."""
    run = tiny(ranks=2)
    with held(run, "step:1", KILL_RANK=str(slow)) as job:
        until(lambda: steps(run) == 2, job)
        time.sleep(0.3)  # the other one waits
        job.signal(signal.SIGTERM)
        time.sleep(0.1)
    assert job.wait().codes == [75, 75], job.text
    assert "Traceback" not in job.text
    stopped(run, "now")
    assert run.checkpoints() == []


SWALLOWS = """
import os, runpy, sys

def kill(pid, number, real=os.kill):
    try:
        real(pid, number)
    except SystemExit:
        print("swallowed")

os.kill = kill
sys.argv[0] = {tiny!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("fails_in", "step"), [("0", 0), ("never", 1)])
def test_torch_swallows_what_the_handler_raises(
    fails_in: str, step: int, tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path
) -> None:
    """Seen in a first forward and backward pass, under Python that C++ calls. What fails then has failed of that."""
    recipe = tmp_path / "swallows.py"
    recipe.write_text(SWALLOWS.format(tiny=str(TINY)))
    run = tiny(recipe=recipe)
    job = run.go(KILL_AT="restored", KILL_SIGNAL="TERM", RAISE_AT=fails_in)
    assert job.codes == [75], job.text
    assert "swallowed" in job.text
    assert stopped(run, "now")["step"] == step
    assert ("a defect of the recipe's" in run.log()) == (fails_in == "0")
    run.finish()
    assert_same(run, clean())


def test_one_of_three_ranks_is_asked_and_all_stop_at_the_same_step(
    tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny(ranks=3)
    job = run.go(KILL_AT="step:4", KILL_SIGNAL="TERM", KILL_RANK="2", STEP_SECONDS="0.1")
    assert job.codes == [75] * 3, job.text
    last = {rank: max(row["step"] for row in run.step_log() if row["rank"] == rank) for rank in range(3)}
    assert len(set(last.values())) == 1, last
    assert last[0] < 25, "they did not stop"
    status = run.status()
    assert (status["state"], status["restart"], status["step"]) == ("stopped", "now", last[0] + 1)
    run.finish()
    assert_same(run, clean(ranks=3))


def test_a_signal_to_all_ranks(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """As a terminal's Ctrl-C, or a machine that shuts down."""
    run = tiny(ranks=2)
    job = run.start(STEP_SECONDS="0.1")
    until(lambda: steps(run) >= 5, job)
    job.signal(signal.SIGTERM)
    job.wait()
    assert job.codes == [75, 75], job.text
    run.finish()
    assert_same(run, clean(ranks=2))


def test_a_row_in_every_step_does_not_make_ranks_deaf(tiny: Callable[..., Run]) -> None:
    """When ranks look next follows from the time of a step, which is not known just after a row of metrics."""
    run = tiny("--log_every", "1", ranks=2, STEP_SECONDS="0.1")
    job = run.go(KILL_AT="step:4", KILL_SIGNAL="TERM", KILL_RANK="1")
    assert job.codes == [75, 75], job.text
    assert run.status()["step"] <= 24
