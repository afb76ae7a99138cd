"""A machine is gone with its disk: the same command on a new one finds the run in the store, and ends alike."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Run, Warm, assert_same
from s3 import S3, Proxy

from pitstop import checkpoint

SAVES = ("--save_every", "5steps")
TTL = {"LEASE_TTL": "1"}


@pytest.fixture
def machine(warm: Warm, tmp_path: Path) -> Callable[..., Run]:
    """Each call is a new machine, with an empty disk."""
    numbers = iter(range(100))

    def make(*flags: str, **env: str) -> Run:
        return Run(warm, tmp_path / f"machine-{next(numbers)}", *SAVES, *flags, **TTL, **env)

    return make


def steps_logged(runs: list[Run], into: Run) -> None:
    """The samples of all machines, for the comparison with the clean run."""
    text = "".join((run.folder / "steps.jsonl").read_text() for run in runs if (run.folder / "steps.jsonl").exists())
    (into.folder / "steps.jsonl").write_text(text)


def test_three_machines_and_a_folder(tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    first, second, third = (machine(*store, STEP_SECONDS="0.05") for _ in range(3))
    first.killed("step:13")
    shutil.rmtree(first.path)
    second.killed("eval:17")
    shutil.rmtree(second.path)
    third.finish()
    assert len(third.events("attempt")) == 3, "the bill of the other machines is lost"
    restored = [event["step"] for event in third.events("restore")]
    assert len(restored) == 2
    assert all(step >= 5 for step in restored), restored
    steps_logged([first, second, third], third)
    assert_same(third, clean())
    stored = sorted(path.name for path in (tmp_path / "store").rglob("model.safetensors"))
    assert stored == ["model.safetensors"]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[S3, dict[str, str], Proxy]]:
    """Server, environment, proxy; moto's buckets are those of the whole process, so the name is the test's."""
    with S3() as s3, s3.proxy() as proxy:
        s3.make_bucket(name_of(tmp_path))
        yield s3, proxy.environment, proxy


def name_of(tmp_path: Path) -> str:
    return tmp_path.name.replace("_", "-")[:60].strip("-")


@pytest.mark.slow
def test_three_machines_and_s3(
    bucket: tuple[S3, dict[str, str], Proxy], tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The second is asked to stop: its last checkpoint is in the store when it leaves."""
    s3, environment, _ = bucket
    env = {**environment, "STEP_SECONDS": "0.05"}
    first, second, third = (machine("--store", f"s3://{name_of(tmp_path)}/runs", **env) for _ in range(3))
    first.killed("step:16")
    shutil.rmtree(first.path)
    job = second.go(KILL_AT="step:21", KILL_SIGNAL="TERM")
    assert job.codes == [75], job.text
    assert [key for key in s3.keys(name_of(tmp_path)) if "/step-00000021/" in key and key.endswith("manifest.json")], (
        job.text
    )
    shutil.rmtree(second.path)
    third.finish()
    assert [event["step"] for event in third.events("restore")][-1] == 21
    steps_logged([first, second, third], third)
    assert_same(third, clean())
    fourth = machine("--store", f"s3://{name_of(tmp_path)}/runs", **env)
    job = fourth.finish()
    assert "is finished after 26 steps in 3 attempts" in job.text
    assert fourth.final() == third.final()
    assert not fourth.step_log(), "it trained again"


@pytest.mark.slow
def test_a_store_that_fails_in_the_middle_costs_no_step(
    bucket: tuple[S3, dict[str, str], Proxy], tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    _, environment, proxy = bucket
    run = machine("--store", f"s3://{name_of(tmp_path)}/runs", **environment, STEP_SECONDS="0.05")
    job = run.start()
    while len(run.step_log()) < 7:
        assert not job.over.wait(0.02), job.text
    proxy.fault = lambda seen: "503"
    while len(run.step_log()) < 24:
        assert not job.over.wait(0.02), job.text
    proxy.fault = lambda seen: None
    job.wait()
    assert job.codes == [0], job.text
    assert_same(run, clean())


def test_the_store_is_newer_than_this_disk(
    tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The old machine comes back with its old disk, after another has gone on."""
    store = ("--store", f"file://{tmp_path}/store")
    old, new = (machine(*store, STEP_SECONDS="0.05") for _ in range(2))
    old.killed("step:8")
    new.killed("step:23")
    old.finish()
    assert [event["step"] for event in old.events("restore")][-1] >= 15
    steps_logged([old, new], old)
    assert_same(old, clean())


def test_two_machines_at_once(tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The second waits, and leaves with 75 naming the first; not a byte of the store is its own."""
    store = ("--store", f"file://{tmp_path}/store")
    first, second = machine(*store, STEP_SECONDS="0.3"), machine(*store)
    job = first.start()
    while not first.path.joinpath("checkpoints/step-00000005").exists():
        assert not job.over.wait(0.02), job.text
    time.sleep(0.5)
    late = second.start()
    late.wait()
    assert late.codes == [75] or job.over.is_set(), late.text
    job.wait()
    assert job.codes == [0], job.text
    assert not second.step_log()
    assert_same(first, clean())


def test_a_store_that_is_not_there_is_said_before_anything_is_paid(machine: Callable[..., Run], tmp_path: Path) -> None:
    for url, said in (("s4://x/y", "s4"), ("file:///proc/nothing", "/proc/nothing")):
        run = machine("--store", url)
        job = run.go()
        assert job.codes in ([2], [75]), job.text
        assert said in job.text
        assert not run.step_log()


def test_a_damaged_checkpoint_in_the_store(
    tmp_path: Path, machine: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    first, second = (machine(*store, STEP_SECONDS="0.05") for _ in range(2))
    first.go(KILL_AT="step:18", KILL_SIGNAL="TERM")
    newest = max(path.parent for path in (tmp_path / "store").rglob("step-*/manifest.json"))
    file = newest / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    job = second.finish()
    assert newest.name in job.text, "the damage was not said"
    assert [event["step"] for event in second.events("restore")][-1] == 15
    steps_logged([first, second], second)
    assert_same(second, clean())


def test_what_is_in_the_store_verifies(tmp_path: Path, machine: Callable[..., Run]) -> None:
    run = machine("--store", f"file://{tmp_path}/store")
    run.finish()
    paths = [path.parent for path in (tmp_path / "store").rglob("step-*/manifest.json")]  # pruned ones leave folders
    found = sorted(checkpoint.verify(path).step for path in paths)
    assert found[-1] == 26
    assert len(found) <= 4
    assert json.loads(next((tmp_path / "store").rglob("status.json")).read_text())["state"] == "finished"
