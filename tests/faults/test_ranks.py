"""One of several ranks dies, hangs or fails: the others end in bounded time, none survives, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import TINY, Job, Run, assert_same
from faults.holding import held, steps, until
from faults.warm import free_port

SAVES = ("--save_every", "3steps")
GROUP_SECONDS = 4.0
PATIENCE = {"PITSTOP_GROUP_SECONDS": str(GROUP_SECONDS)}


def gone(pids: list[int]) -> bool:
    """By the process table; zombies are gone."""
    states = []
    for pid in pids:
        path = Path(f"/proc/{pid}/stat")
        states.append(path.read_text().rpartition(")")[2].split()[0] if path.exists() else "")
    return set(states) <= {"", "Z"}


def training(run: Run, ranks: int, **env: str) -> Job:
    job = run.start(STEP_SECONDS="0.1", **PATIENCE, **env)
    until(lambda: steps(run) >= 5 * ranks, job)
    return job


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_rank_that_stands_still(rank: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """SIGSTOP: no connection breaks, nothing is ever sent. The other waits for as long as the group's time-out."""
    run = tiny(*SAVES, ranks=2)
    job = training(run, 2)
    job.signal(signal.SIGSTOP, rank)
    begun = time.monotonic()
    job.wait(GROUP_SECONDS + 20)  # five of them between the launcher's SIGTERM and its SIGKILL
    assert time.monotonic() - begun > GROUP_SECONDS - 1
    assert job.codes[1 - rank] == 1, job.text
    assert job.codes[rank] == -signal.SIGKILL
    assert gone(job.pids)
    status = run.status()
    if rank == 1:
        assert (status["state"], status["restart"]) == ("failed", "now")
        assert "time" in status["reason"].lower(), status["reason"]
    else:
        assert (status["state"], status["restart"]) == ("running", "now")  # its launcher has to say that it is dead
    run.finish()
    assert_same(run, clean(ranks=2))


def test_a_rank_that_hangs_in_the_middle_of_a_save(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Rank 0 waits for its disk, for longer than the others wait for it."""
    run = tiny(*SAVES, ranks=2)
    with held(run, "saving:6", **PATIENCE) as job:
        job.wait(GROUP_SECONDS + 20)
    assert job.codes[1] == 1, job.text
    assert gone(job.pids)
    assert run.checkpoints()[-1] == "step-00000003"
    run.finish()
    assert_same(run, clean(ranks=2))


def test_a_defect_on_one_rank(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES, ranks=3)
    job = run.start(**PATIENCE, RAISE_AT="7", RAISE_RANK="2")
    begun = time.monotonic()
    assert job.wait(30).codes[2] == 1, job.text
    assert time.monotonic() - begun < 20
    assert "a defect of the recipe's" in job.text
    assert gone(job.pids)
    assert run.checkpoints()[-1] in ("step-00000003", "step-00000006")
    run.finish()
    assert_same(run, clean(ranks=3))


def test_a_signal_while_the_other_rank_has_not_come(tiny: Callable[..., Run]) -> None:
    """There is nothing to lose yet: it ends now, and not after the group's time-out of ten minutes."""
    run = tiny()
    alone = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "ACCELERATE_USE_CPU": "true",
    }
    job = run.start(MASTER_PORT=str(free_port()), PITSTOP_GROUP_SECONDS="60", **alone)
    time.sleep(1.5)
    assert not job.over.is_set(), job.text
    job.signal(signal.SIGTERM)
    ended = job.over.wait(4)
    job.kill()
    assert ended
    assert job.codes[0] in (75, -signal.SIGTERM)


@pytest.mark.slow
def test_a_rank_that_is_killed_under_torchrun(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The real agent: it ends what is left, and says 1. The same ranks then go on."""
    run = tiny(*SAVES, ranks=2)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    command += [str(TINY), "--name", "r", "--tracker", "none", "--precision", "fp32", *SAVES]
    with open(run.folder / "out.txt", "wb") as out:
        agent = subprocess.Popen(
            command,
            cwd=run.folder,
            env=os.environ
            | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "STEP_SECONDS": "0.2"}
            | {"STEP_LOG": str(run.folder / "steps.jsonl")},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        kill_rank_1(run, agent)
        assert agent.wait(40) == 1
    finally:
        agent.kill()
        agent.wait()
    run.finish()
    assert run.status()["attempt"] == 2
    assert_same(run, clean(ranks=2))


def kill_rank_1(run: Run, agent: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while steps(run) < 10:
        assert time.monotonic() < deadline, (run.folder / "out.txt").read_text()
        assert agent.poll() is None, (run.folder / "out.txt").read_text()
        time.sleep(0.05)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"tiny.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    first = int(run.status()["pid"])
    assert first in ranks
    os.kill(next(pid for pid in ranks if pid != first), signal.SIGKILL)
    agent.wait(40)
    assert gone(ranks)
