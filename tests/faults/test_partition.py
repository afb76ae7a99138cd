"""Two machines, a rank on each, and the cable between them is cut: two network namespaces and two virtual cards."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from faults.harness import Job, Run, assert_same, snapshot
from faults.holding import steps, until
from faults.warm import free_port

GROUP_SECONDS = 4.0
SAVES = ("--save_every", "3steps")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@dataclass(frozen=True)
class Cable:
    """Between the machines 0 and 1. `names` are those of their namespaces, of the card inside too."""

    names: tuple[str, str]

    def plug(self) -> None:
        self._set("up")

    def cut(self) -> None:
        """No packet comes through any more, and nobody is told: connections stay open on both sides."""
        self._set("down")

    def _set(self, state: str) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", "cable", state)


@pytest.fixture
def cable() -> Iterator[Cable]:
    names = (f"pit{os.getpid()}a", f"pit{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.211.77.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
        Cable(names).plug()
    except (OSError, subprocess.CalledProcessError) as error:
        remove(names)
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', error)}")
    yield Cable(names)
    remove(names)


def remove(names: tuple[str, str]) -> None:
    """With what lies in them: the cards too."""
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def both(run: Run, cable: Cable, **env: str) -> list[Job]:
    """A rank on each machine, as a launcher there would start it. Only that of rank 0 sees the run's disk."""
    port = str(free_port())
    return [
        run.start(
            NETNS=name,
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE="2",
            MASTER_ADDR="10.211.77.1",
            MASTER_PORT=port,
            GLOO_SOCKET_IFNAME="cable",
            ACCELERATE_USE_CPU="true",
            PITSTOP_GROUP_SECONDS=str(GROUP_SECONDS),
            **env,
        )
        for rank, name in enumerate(cable.names)
    ]


def finish(run: Run, cable: Cable) -> None:
    assert [job.wait().codes for job in both(run, cable)] == [[0], [0]], run.log()


def test_the_cable_is_cut(tiny: Callable[..., Run], cable: Cable) -> None:
    """Both sides end within the group's time-out, though nobody tells them; meanwhile nobody else may write; and when
    they meet again, they go on to the bytes of two machines that were never apart."""
    whole, run = tiny(*SAVES), tiny(*SAVES)
    finish(whole, cable)
    jobs = both(run, cable, STEP_SECONDS="0.1")
    until(lambda: steps(run) >= 16, jobs[0])
    cable.cut()
    begun = time.monotonic()
    time.sleep(0.3)  # the step under way
    before = snapshot(run.path)
    other = run.go(LOCK_WAIT="0.3")  # somebody starts it anew, alone, while rank 0 still waits
    assert other.codes == [75], other.text
    assert f"pid {jobs[0].pids[0]} " in other.text
    assert snapshot(run.path) == before
    assert not jobs[0].over.is_set()
    for job in jobs:
        assert job.wait(3 * GROUP_SECONDS + 5).codes == [1], job.text
    assert time.monotonic() - begun > GROUP_SECONDS - 1, "something else has ended them"
    status = run.status()
    assert (status["state"], status["restart"]) == ("failed", "now")
    assert run.checkpoints()
    cable.plug()
    finish(run, cable)
    assert [event["attempt"] for event in run.events("attempt")] == [1, 2], "there was another writer"
    assert_same(run, whole)


def test_the_cable_is_cut_before_they_meet(tiny: Callable[..., Run], cable: Cable) -> None:
    """A machine that cannot reach the other ends too, and trains nothing."""
    run = tiny(*SAVES)
    cable.cut()
    jobs = both(run, cable)
    for job in jobs:
        assert job.wait(3 * GROUP_SECONDS + 15).codes == [1], job.text
    assert not (run.path / "config.json").exists(), "nothing is known of the data yet"
    assert run.checkpoints() == []
    cable.plug()
    finish(run, cable)
