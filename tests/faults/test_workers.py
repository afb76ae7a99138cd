"""Batches that DataLoader workers bring: signals to the whole group, workers that die or hang, no memory left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import TINY, UNDER_WAY, Job, Run, assert_same
from faults.holding import held, steps, stopped, until

WORKERS = {"WORKERS": "2"}
GROUP = {**WORKERS, "NEW_GROUP": "1"}
SAVES = ("--save_every", "5steps")


def processes() -> dict[int, tuple[int, int]]:
    """pid -> (parent, group) of all that live, by the process table."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            found[int(path.parent.name)] = (int(fields[1]), int(fields[2]))
    return found


def children(pid: int) -> set[int]:
    return {child for child, (parent, _) in processes().items() if parent == pid}


def check_gone(pids: set[int], within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while left := pids & processes().keys():
        assert time.monotonic() < deadline, f"they survive: {left}"
        time.sleep(0.02)


def workers_of(job: Job) -> set[int]:
    """Once they are there, and each is in a group of its own."""
    (pid,) = job.pids
    until(lambda: len(children(pid)) == 2, job)
    until(lambda: {processes()[worker][1] for worker in children(pid)} == children(pid), job)
    return children(pid)


def to_the_group(job: Job, number: int) -> None:
    (pid,) = job.pids
    assert os.getpgid(pid) == pid, "it would be the group of others"
    os.killpg(pid, number)


def test_they_bring_the_same(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES, **WORKERS)
    run.killed("step:8", **UNDER_WAY)
    run.finish()
    assert_same(run, clean())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_during_a_save(number: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The checkpoint under way is written, and the one of the step at which the run stops."""
    run = tiny(*SAVES, **GROUP)
    with held(run, "saving:10") as job:
        workers = workers_of(job)
        to_the_group(job, number)
        assert not job.over.wait(0.3), job.text
    assert job.wait().codes == [75 if number == signal.SIGTERM else 76], job.text
    check_gone(workers, 1.0)
    step = run.status()["step"]
    assert "step-00000010" in run.checkpoints()
    assert run.checkpoints()[-1] == f"step-{step:08d}"
    assert "Traceback" not in job.text
    run.finish()
    assert_same(run, clean())


# Where the run stands -> the step of its checkpoint after the signals, or None: whatever there was.
PHASES = {
    "begin": None,
    "prepared": None,
    "loading": None,
    "restored": None,
    "step:11": 11,
    "eval:17": 17,
    "saving:15": 26,
    "finish:before": 26,
    "finish:after_final": 26,
}


@pytest.mark.parametrize("instant", PHASES)
def test_twice_sigterm_to_the_group(instant: str, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """In every phase of a run that has a checkpoint of step 10: it ends soon, whole, and goes on to the same bytes."""
    run = tiny(*SAVES, **GROUP)
    run.killed("commit:10", NEW_GROUP="0")
    saved, done = run.checkpoints(), steps(run)
    with held(run, instant) as job:
        family = children(job.pids[0])
        to_the_group(job, signal.SIGTERM)
        time.sleep(0.05)
        if not job.over.is_set():
            to_the_group(job, signal.SIGTERM)
    job.wait(30)
    check_gone(family, 1.0)
    assert job.codes[0] in (75, -signal.SIGTERM, 0), job.text
    assert "Traceback" not in job.text
    if PHASES[instant] is None:
        assert job.codes[0] in (75, -signal.SIGTERM)
        assert (run.checkpoints(), steps(run)) == (saved, done)
    elif run.status()["state"] != "finished":
        status = stopped(run, "now")
        assert run.checkpoints()[-1] == f"step-{status['step']:08d}"
        assert int(str(status["step"])) <= PHASES[instant]
    run.finish(NEW_GROUP="0")
    assert_same(run, clean())


def test_during_the_imports(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """A real interpreter, signalled again and again while it loads torch and what comes then."""
    run = tiny()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "STEP_LOG": str(run.folder / "steps.jsonl")}
    command = [sys.executable, str(run.recipe), "--name", "r", "--tracker", "none", "--precision", "fp32"]
    for delay in (0.05, 0.5, 1.5):
        with open(run.folder / "out.txt", "wb") as out:
            process = subprocess.Popen(command, cwd=run.folder, env=environment, stdout=out, stderr=out)
        time.sleep(delay)
        process.terminate()
        time.sleep(0.01)
        process.terminate()
        assert process.wait(30) in (75, -signal.SIGTERM), (run.folder / "out.txt").read_text()
    run.finish()
    assert_same(run, clean())


def test_killed_they_do_not_stay(tiny: Callable[..., Run]) -> None:
    """The training is killed: its workers end by themselves, torch looks for their parent every five seconds."""
    run = tiny(*SAVES, **WORKERS)
    with held(run, "step:7") as job:
        workers = workers_of(job)
        job.kill()
        check_gone(workers, 10.0)


@pytest.mark.parametrize(
    ("fault", "words"), [("kill:8", "killed by signal: Killed"), ("hang:8", "timed out after 3 s")]
)
def test_a_worker_that_fails(fault: str, words: str, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The cause is named, in the status too; launchers start it again, and nothing that was saved is lost."""
    run = tiny(*SAVES, **WORKERS)
    job = run.start(WORKER_FAULT=fault)
    workers = workers_of(job)
    assert job.wait(60).codes == [1], job.text
    check_gone(workers, 10.0)
    assert words in job.text
    status = run.status()
    assert (status["state"], status["restart"]) == ("failed", "now")
    assert status["step"] < 8  # a worker is ahead of the training by up to four steps
    assert "DataLoader" in status["reason"]
    saved = [f"step-{event['step']:08d}" for event in run.events("save")]
    assert saved in ([], run.checkpoints())  # one may be under way when torch's handler raises: written, not yet told
    assert run.checkpoints() in ([], ["step-00000005"])
    run.finish()
    assert_same(run, clean())


TOLD_TWICE = """
import os, runpy, signal, sys
from pitstop.session.attempt import Attempt

def told(*_):
    raise RuntimeError("DataLoader worker is killed")

def late(self, error, failed=Attempt.failed):
    os.kill(os.getpid(), signal.SIGCHLD)
    failed(self, error)

signal.signal(signal.SIGCHLD, told)
Attempt.failed = late
sys.argv[0] = {tiny!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

TOLD_LATE = """
import os, runpy, signal, sys, threading
from pitstop.session.session import Session

def told(*_):
    raise RuntimeError("DataLoader worker is killed")

def commit(self, figures, real=Session.commit):
    if self.step == 6:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGCHLD)).start()
        raise ConnectionResetError
    real(self, figures)

signal.signal(signal.SIGCHLD, told)
Session.commit = commit
sys.argv[0] = {tiny!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_worker_whose_pipe_breaks_long_before_torch_tells(tiny: Callable[..., Run], tmp_path: Path) -> None:
    """The kernel closes what a process had open before it tells the parent: what is written down is the death."""
    recipe = tmp_path / "told_late.py"
    recipe.write_text(TOLD_LATE.format(tiny=str(TINY)))
    run = tiny(*SAVES, recipe=recipe)
    job = run.go()
    assert job.codes == [1], job.text
    status = run.status()
    assert (status["state"], status["restart"]) == ("failed", "now")
    assert "DataLoader worker is killed" in status["reason"]


def test_a_worker_that_fails_is_told_twice(tiny: Callable[..., Run], tmp_path: Path) -> None:
    """Its pipe breaks, and while that is written down torch's handler of SIGCHLD raises: it is to be started again."""
    recipe = tmp_path / "told_twice.py"
    recipe.write_text(TOLD_TWICE.format(tiny=str(TINY)))
    run = tiny(*SAVES, recipe=recipe)
    job = run.go(RAISE_AT="7")
    assert job.codes == [1], job.text
    status = run.status()
    assert (status["state"], status["restart"]) == ("failed", "now")
    assert "a defect of the recipe's" in status["reason"]
