"""The store hangs, the machine is about to be taken: the run leaves in time, and what it has done is on its disk."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Job, Run, Warm
from faults.holding import held, steps, stopped, until
from s3 import S3, Proxy

from pitstop import checkpoint
from pitstop.stopper import SIGNAL_SECONDS

MARGIN_SECONDS = 5.0
pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with S3() as s3, s3.proxy() as front:
        s3.make_bucket(bucket_of(tmp_path))
        yield front


def bucket_of(tmp_path: Path) -> str:
    return f"hangs-{abs(hash(tmp_path)):x}"


@pytest.fixture
def machine(warm: Warm, tmp_path: Path, proxy: Proxy) -> Callable[[str], Run]:
    """The lease lives as long as in earnest: a renewal may hang as well."""
    store = f"s3://{bucket_of(tmp_path)}/runs"
    env = {**proxy.environment, "STEP_SECONDS": "0.1"}
    return lambda name: Run(warm, tmp_path / name, "--save_every", "5steps", "--store", store, **env)


def cut(proxy: Proxy) -> None:
    proxy.fault = lambda seen: "partition"


def hangs(proxy: Proxy) -> bool:
    return any(seen.fault for seen in proxy.log)


def leaves_in_time(job: Job) -> None:
    begun = time.monotonic()
    job.signal(signal.SIGTERM)
    job.wait(SIGNAL_SECONDS + MARGIN_SECONDS)
    assert time.monotonic() - begun < SIGNAL_SECONDS + MARGIN_SECONDS
    assert job.codes == [75], job.text


def test_after_some_steps(machine: Callable[[str], Run], proxy: Proxy) -> None:
    run = machine("a")
    job = run.start(STEP_SECONDS="0.3")
    until(lambda: steps(run) >= 7, job)
    cut(proxy)
    until(lambda: hangs(proxy), job)
    leaves_in_time(job)
    done = int(stopped(run, "now")["step"])  # type: ignore[call-overload]
    assert done == steps(run) >= 7
    assert checkpoint.verify(run.path / "checkpoints" / f"step-{done:08d}").step == done
    assert "not everything is up" in run.log()
    proxy.fault = lambda seen: None
    begun = time.monotonic()
    run.finish(STEP_SECONDS="0")
    assert run.events("restore")[-1]["step"] == done
    assert time.monotonic() - begun < 25, "it waited for its own lease"


def test_before_its_first_step(machine: Callable[[str], Run], proxy: Proxy) -> None:
    """All is open and the lease is held; a signal ends it at once, and then the store is asked to let go."""
    run = machine("a")
    with held(run, "restored") as job:
        cut(proxy)
        leaves_in_time(job)
    assert not steps(run)


def test_while_it_asks_for_the_store(machine: Callable[[str], Run], proxy: Proxy) -> None:
    run = machine("a")
    cut(proxy)
    job = run.start()
    until(lambda: hangs(proxy), job)
    leaves_in_time(job)
    assert not steps(run)


def test_while_it_fetches(machine: Callable[[str], Run], proxy: Proxy) -> None:
    """A request of a part of a checkpoint may hang for two minutes."""
    machine("a").go(KILL_AT="step:8", KILL_SIGNAL="TERM")
    proxy.fault = lambda seen: "partition" if seen.method == "GET" and "state.safetensors" in seen.name else None
    run = machine("b")
    job = run.start()
    until(lambda: hangs(proxy), job)
    leaves_in_time(job)
    assert not run.checkpoints()
    proxy.fault = lambda seen: None
    run.finish(STEP_SECONDS="0")
    assert [event["step"] for event in run.events("restore")] == [8]
