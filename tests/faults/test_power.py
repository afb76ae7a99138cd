"""The power fails while a run saves: whatever a disk may then hold, the run goes on at what was said to be saved."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import saving
from faults.power import State, states
from faults.recorder import Call, Recorder, read_tree, write_tree
from faults.saving import CONFIG, KEEP, Disk

from pitstop import checkpoint
from pitstop.files import write_json
from pitstop.record import Metrics
from pitstop.rundir import RunDirectory

DAMAGED = "step-00000003"


@pytest.fixture
def disk() -> Iterator[Path]:
    """In memory where possible: the disk is played here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pitstop-test-", dir=memory if memory.is_dir() else None) as path:
        yield Path(path).resolve()


def attempt(path: Path, steps: int, recorder: Recorder) -> int:
    """As a session does it, with the thread that writes. Returns the step at which it ends."""
    run = RunDirectory(path)
    metrics = Metrics(path / "metrics.jsonl", world=1)
    run.open(wait_seconds=1)
    if not run.exists():
        write_json(path / "config.json", CONFIG)
    loaded = saving.load(run, metrics)
    writer = checkpoint.Writer(path / "checkpoints", keep=KEEP)
    for step in range(loaded + 1, loaded + steps + 1):
        metrics.write(saving.row(step))
        about = {"metrics_bytes": metrics.flush(), "state": saving.row(step)}
        writer.begin(step, saving.tensors(step), set(), about, metrics.sync)
        saved = writer.take(wait=True)
        assert saved is not None
        assert saved.error is None
        recorder.note(step)
        run.event("save", step=step)
        run.write_status(durable=False, step=step)  # a heartbeat
    checkpoint.write_final(path / "final", saving.tensors(step), {"step": step})
    metrics.write(saving.row(step + 1))  # beyond the checkpoint
    run.write_status(state="finished")
    run.close()
    return loaded + steps


def damage(path: Path, recorder: Recorder) -> None:
    """A byte of a checkpoint goes bad; from now on the one before counts."""
    recorder.note("damage")
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"?", 1000)
    os.fsync(descriptor)
    os.close(descriptor)


def record(root: Path) -> list[Call]:
    """The calls of two attempts, the second of which finds the newest checkpoint damaged."""
    root.mkdir()
    path = root / "runs" / "r"
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(root, patch)
        assert attempt(path, 3, recorder) == 3
        damage(path / "checkpoints" / DAMAGED / "state.safetensors", recorder)
        assert attempt(path, 2, recorder) == 4
        recorder.close_all()
    assert recorder.live.tree() == read_tree(root), "something went past the recorder"
    return recorder.calls


def durable_step(notes: list[object]) -> int:
    steps = [note for note in notes if isinstance(note, int)]
    return 2 if notes and notes[-1] == "damage" else max(steps, default=0)


def check(path: Path, state: State) -> None:
    """Raises AssertionError if the run would lose something, or believe what is not so."""
    disk = Disk(path)
    newest, names = disk.newest(), disk.folders()
    assert newest >= durable_step(state.notes), f"step {durable_step(state.notes)} was saved, {names} are there"
    torn = [name for name, step in names.items() if name.startswith("step-") and step is None]
    assert not [name for name in torn if int(name[5:]) > newest and name != DAMAGED], f"half a checkpoint: {names}"
    config = disk.json("config.json")
    assert config == CONFIG or (config is None and not newest)
    run = RunDirectory(path)
    assert isinstance(run.status(), dict)
    run.events()
    if (path / "final").exists():
        assert {file.name for file in (path / "final").iterdir()} == {"model.safetensors", "model.json"}
        assert (path / "final" / "model.safetensors").stat().st_size > sum(saving.SIZES.values())
        assert isinstance(disk.json("final/model.json"), dict)
    if newest:
        found = checkpoint.newest(path / "checkpoints", complain=lambda text: None)
        assert found is not None
        assert found.step == newest
        assert {name: bytes(tensor.numpy()) for name, tensor in found.tensors.items()} == {
            name: saving.content(newest, name) for name in saving.SIZES
        }
        metrics = Metrics(path / "metrics.jsonl", world=1)
        assert metrics.open_at(found.manifest["metrics_bytes"]) == 0
        assert metrics._file is not None
        os.close(metrics._file._descriptor)  # there are thousands of them


def check_all(folder: Path, calls: list[Call], *, ordered: bool) -> int:
    """Returns the number of states that were looked at."""
    number = 0
    for number, state in enumerate(states(calls, ordered=ordered), 1):
        root = folder / str(number)
        root.mkdir()
        write_tree(root, state.tree)
        check(root / "runs" / "r", state)
        shutil.rmtree(root)
    return number


@pytest.mark.slow
def test_a_disk_that_keeps_the_order_of_names(disk: Path) -> None:
    calls = record(disk / "recorded")
    assert check_all(disk, calls, ordered=True) > 1000


@pytest.mark.slow
def test_a_disk_that_keeps_what_it_must(disk: Path) -> None:
    calls = record(disk / "recorded")
    assert check_all(disk, calls, ordered=False) > 1000


def without_fsync(calls: list[Call], entry: str) -> list[Call]:
    """As if a program had not fsynced what lies under this name at first."""
    nodes = {call.entry for call in calls if call.kind == "name" and call.new.startswith(entry)}
    return [call for call in calls if call.kind != "fsync" or call.node not in nodes]


@pytest.mark.parametrize(
    "entry", ["state.safetensors", "manifest.json", ".tmp-step", "checkpoints", "metrics.jsonl", "runs"]
)
def test_each_fsync_is_needed(disk: Path, entry: str) -> None:
    """The states that are made up here do find it, if one is missing."""
    calls = record(disk / "recorded")
    with pytest.raises(AssertionError):
        check_all(disk, without_fsync(calls, entry), ordered=False)
