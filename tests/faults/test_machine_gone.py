"""Without any notice the whole machine is gone, and another one goes on. In both the process has the same pid."""

import ctypes
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Job, Run, assert_same

NAMESPACE = Path(__file__).with_name("namespace.py")


def descendants(pid: int) -> set[int]:
    """By the process table of the host."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has just ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def first(job: Job) -> int:
    """The pid, as the host sees it, of the first process of the namespace."""
    while not (found := re.search(r"^first (\d+)$", job.text, re.MULTILINE)):
        assert not job.over.wait(0.005), job.text
    return int(found[1])


def saving(run: Run) -> bool:
    folder = run.path / "checkpoints"
    return folder.exists() and any(name.startswith(".tmp-step-") for name in os.listdir(folder))


@pytest.fixture
def _namespaces() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(1 if ctypes.CDLL(None).unshare(0x20000000) else 0)
    if os.waitpid(pid, 0)[1]:
        pytest.skip("there are no pid namespaces here")


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_the_machine_is_gone(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Five machines; three of them go while a checkpoint is being written, which the next one finds half done, under
    the very name that it would use itself."""
    chance = random.Random(7)
    run = tiny("--save_every", "2steps", recipe=NAMESPACE, STEP_SECONDS="0.02")
    for number in range(5):
        job = run.start()
        machine = first(job)
        steps = len(run.step_log())
        while len(run.step_log()) < steps + chance.randrange(3, 6):
            assert not job.over.wait(0.005), job.text
        deadline = time.monotonic() + 20
        while number % 2 == 0 and not saving(run) and time.monotonic() < deadline:
            assert not job.over.is_set(), job.text
        processes = descendants(machine)
        assert len(processes) >= 3
        os.kill(machine, signal.SIGKILL)
        job.wait()
        assert not [pid for pid in processes if os.path.exists(f"/proc/{pid}")], "something outlived the machine"
    run.finish()
    assert run.status()["attempt"] == 6
    assert run.status()["pid"] == 1
    assert_same(run, clean())
