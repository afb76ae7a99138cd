"""Killed before every single write, fsync, rename and unlink of a run: nothing torn, nothing that was saved is lost."""

import json
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults.harness import LONG_FORM, Run, assert_same

from pitstop import checkpoint

EVERY = 1 if LONG_FORM else 5
SHORT = ("--epochs", "1", "--images", "100", "--save_every", "2steps", "--keep", "1", "--log_every", "2")


@pytest.fixture(scope="module")
def short(clean: Callable[..., Run]) -> Run:
    return clean(*SHORT)


def number_of_calls(run: Run) -> int:
    log = run.folder / "calls.json"
    run.finish(KILL_AT="call:none:0", CALL_LOG=str(log))
    return int(json.loads(log.read_text())["any"])


def check_after_kill(run: Run) -> None:
    """What was said to be saved is there, whole, or something newer is; one damaged on the way does not exist."""
    acknowledged = max((event["step"] for event in run.events("save")), default=-1)
    folder = run.path / "checkpoints"
    if acknowledged < 0 and not folder.exists():
        return
    found = [checkpoint.verify(folder / name).step for name in run.checkpoints() if name.startswith("step-")]
    assert max(found, default=-1) >= acknowledged
    rows = [row for row in run.rows()] if (run.path / "metrics.jsonl").exists() and acknowledged >= 0 else []
    assert all(step in [row["step"] for row in rows] for step in range(2, acknowledged + 1, 2))


def kill_at_call(run: Run, number: int, clean: Run, then: list[int]) -> None:
    """Killed before the call `number` of one attempt, and before others of the attempts after it."""
    for call in [number, *then]:
        job = run.go(KILL_AT=f"call:any:{call}")
        if job.code == 0:
            break
        assert job.codes == [-signal.SIGKILL], job.text
        check_after_kill(run)
    run.finish()
    assert_same(run, clean)
    assert not [name for name in run.checkpoints() if name.startswith("bad-")], "a good checkpoint was set aside"


def sweep(calls: list[int], tiny: Callable[..., Run], clean: Run, then: Callable[[int], list[int]]) -> None:
    runs = [tiny(*SHORT) for _ in calls]
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(kill_at_call, run, call, clean, then(call)) for run, call in zip(runs, calls, strict=True)]
    for task, call in zip(tasks, calls, strict=True):
        if error := task.exception():
            raise AssertionError(f"killed before call {call}: {error}") from error


@pytest.mark.slow
def test_killed_before_every_call(tiny: Callable[..., Run], short: Run) -> None:
    """Of every five one, unless all are asked for; the system calls of a save are all in test_syscalls.py."""
    total = number_of_calls(tiny(*SHORT))
    assert total > 50
    sweep(list(range(random.Random(3).randrange(EVERY) + 1, total + 1, EVERY)), tiny, short, lambda call: [])


@pytest.mark.slow
def test_killed_before_calls_again_and_again(tiny: Callable[..., Run], short: Run) -> None:
    """Five times in a row: also while cleaning up after the kill before."""
    total = number_of_calls(tiny(*SHORT))
    chance = random.Random(4)
    calls = chance.sample(range(1, total + 1), 20 // EVERY)
    sweep(calls, tiny, short, lambda call: [chance.randrange(1, total // 2) for _ in range(4)])


def test_the_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill -9 loses nothing that was written; the power does, unless all is on the disk before the next thing says so.

    Files, their directory, the new name, its parent; and only then an old checkpoint goes.
    """
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}".replace(f"-{os.getpid()}", ""))
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        calls.append(f"rename {Path(old).name} {Path(new).name}".replace(f"-{os.getpid()}", ""))
        rename(old, new)

    checkpoint.write(tmp_path, 1, checkpoint.to_bytes({}, {}), {}, keep=1)
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    checkpoint.write(tmp_path, 2, checkpoint.to_bytes({}, {}), {}, keep=1)
    assert calls == [
        "fsync state.safetensors",
        "fsync manifest.json",
        "fsync .tmp-step-00000002",
        "rename .tmp-step-00000002 step-00000002",
        f"fsync {tmp_path.name}",
        "rename step-00000001 .trash-step-00000001",
    ]
