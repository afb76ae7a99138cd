"""Every system call of a few saves, and of the loading before them: killed there, or refused by the disk, by strace.

No part of pitstop takes part in the fault, and the bytes are read back by `saving.Disk`, which knows what belongs to
each step. Four things must hold after each: what was said to be saved is there, or something newer is; nothing is
mixed; an error is no end, the next save is tried; and the same command goes on, leaving nothing behind.
"""

import contextlib
import itertools
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.harness import Warm
from faults.saving import CONFIG, Disk

PROGRAM = Path(__file__).with_name("saving.py")
NAMES = "write fsync rename renameat renameat2 mkdir mkdirat unlink unlinkat rmdir ftruncate"
CALLS = ",".join(f"?{name}" for name in NAMES.split())  # ?: not every machine has each
STEPS = 3  # one more than are kept: the last one prunes
SECONDS = 30
DAMAGED = "step-00000003"
KILL, FULL, BROKEN, BROKEN_FOR_GOOD = "signal=KILL", "error=ENOSPC", "error=EIO", "error=EIO for good"


@dataclass
class Attempt:
    """What one run of saving.py said, and how it ended."""

    loaded: int | None
    saved: list[int]
    failed: list[tuple[int, int]]
    end: str | None
    code: int
    trace: str

    @property
    def acknowledged(self) -> int:
        return max([self.loaded or 0, *self.saved])


class Saves:
    """Runs saving.py, if wanted under strace, which takes hold of it before its first call."""

    def __init__(self, warm: Warm, folder: Path) -> None:
        self._warm, self._folder, self._numbers = warm, folder, itertools.count()

    def __call__(self, run: Path, *options: str, steps: int = STEPS) -> Attempt:
        number = next(self._numbers)
        address, trace = self._folder / f"{number}.socket", self._folder / f"{number}.trace"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(SECONDS)
            listener.bind(str(address))
            listener.listen()
            argv = [PROGRAM, run, address, steps]
            job = self._warm.start(argv, cwd=self._folder, out=self._folder / f"{number}.out")
            line, _ = listener.accept()
        with line, line.makefile() as file, self._strace(job.pids[0], trace, options):
            line.settimeout(SECONDS)
            line.sendall(b"!")
            said = file.read().splitlines()
            job.wait(SECONDS)
        words = [text.split(maxsplit=1) for text in said]
        loaded = [int(rest[0]) for kind, *rest in words if kind == "loaded"]
        failed = [tuple(map(int, rest[0].split())) for kind, *rest in words if kind == "failed"]
        ends = [" ".join(rest) for kind, *rest in words if kind == "ended"]
        text = trace.read_text() if trace.exists() else ""
        saved = [int(rest[0]) for kind, *rest in words if kind == "saved"]
        assert ends or job.code < 0, job.text
        return Attempt(loaded[0] if loaded else None, saved, failed, ends[0] if ends else None, job.code, text)

    @contextlib.contextmanager
    def _strace(self, pid: int, trace: Path, options: tuple[str, ...]) -> Iterator[None]:
        if not options:
            yield
            return
        command = ["strace", "-f", "-y", "-o", str(trace), "-p", str(pid), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "attached" in said, f"strace cannot take hold of a process: {said}"
            yield
            process.communicate(timeout=SECONDS)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where possible: what a call does is the same, and an fsync costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pitstop-test-", dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def saves(warm: Warm, folder: Path) -> Saves:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return Saves(warm, folder)


def begun(saves: Saves, run: Path) -> int:
    """A run as a kill and a bad disk may leave it: three checkpoints, the newest of them damaged, and halves of others.
    Returns the newest step that is good."""
    assert saves(run).saved == [1, 2, 3]
    folder = run / "checkpoints"
    state = folder / DAMAGED / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    shutil.copytree(folder / "step-00000002", folder / ".trash-step-00000001-99")
    (folder / ".tmp-step-00000004-99").mkdir()
    (folder / ".tmp-step-00000004-99" / "state.safetensors").write_bytes(b"half")
    (run / ".status.json.99.tmp").write_bytes(b"half")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "st')
    assert Disk(run).newest() == 2
    return 2


@dataclass(frozen=True)
class Beginning:
    """Where the attempts of a sweep begin, and the system calls (name, number) of each of them in its two halves."""

    run: Path | None
    good: int
    steps: int
    loading: list[tuple[str, int]]
    saving: list[tuple[str, int]]


Case = tuple[Beginning, str, int, str]


@pytest.fixture(scope="module")
def beginnings(saves: Saves, folder: Path) -> list[Beginning]:
    old = folder / "old"
    good = begun(saves, old)
    found = []
    for run, start, steps in ((None, 0, 1), (old, good, 2)):
        copy = folder / f"traced-{steps}"
        if run:
            shutil.copytree(run, copy)
        attempt = saves(copy, "-e", f"trace={CALLS},sendto", steps=steps)
        assert attempt.saved == list(range(start + 1, start + steps + 1))
        assert Disk(copy).newest() == start + steps
        names = re.findall(r"^\d+ +(\w+)\(", attempt.trace, re.MULTILINE)
        calls = [(name, names[: place + 1].count(name)) for place, name in enumerate(names)]
        said = names.index("sendto")  # "loaded"
        assert {"write", "fsync", "mkdir"} <= set(names)
        assert not run or {"unlinkat", "rmdir"} & set(names[said:]), "nothing was pruned"
        found.append(Beginning(run, start, steps, calls[:said], [call for call in calls[said:] if call[0] != "sendto"]))
    return found


def check(saves: Saves, run: Path, beginning: Beginning, call: str, number: int, fault: str) -> None:
    """One attempt with one fault, and one without."""
    if beginning.run:
        shutil.copytree(beginning.run, run)
    action, _, more = fault.partition(" ")
    inject = f"inject={call}:{action}:when={number}{'+' if more else ''}"
    attempt = saves(run, "-e", f"trace={CALLS}", "-e", inject, steps=beginning.steps)
    disk = Disk(run)
    if fault == KILL:
        assert attempt.code == -signal.SIGKILL
    else:
        assert "(INJECTED)" in attempt.trace, "it did not happen"
    newest, names = disk.newest(), disk.folders()
    torn = [name for name, step in names.items() if name.startswith("step-") and step is None]
    assert not [name for name in torn if beginning.run is None or name != DAMAGED], f"half a checkpoint: {names}"
    assert attempt.loaded in (None, beginning.good), f"step {beginning.good} was good, and {attempt.loaded} was loaded"
    assert newest >= max(beginning.good, *attempt.saved, 0), f"{attempt.saved} were saved, {names} are there"
    assert disk.json("config.json") in (None, CONFIG)
    assert isinstance(disk.json("status.json"), dict | None)
    if attempt.loaded is not None and fault != KILL:
        assert attempt.end == "", "an error ended the training"
        tried = sorted({*attempt.saved, *(step for step, _ in attempt.failed)})
        assert tried == list(range(beginning.good + 1, beginning.good + beginning.steps + 1))
    again = saves(run, steps=1)
    assert (again.loaded, again.saved, again.end) == (newest, [newest + 1], "")
    assert disk.newest() == newest + 1
    assert not list(run.rglob(".*")), "leftovers"


def sweep(saves: Saves, folder: Path, cases: list[Case]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name, ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(check, saves, Path(name) / str(number), *case) for number, case in enumerate(cases)]
    said = [
        f"{call} {number}, {'loading' if (call, number) in beginning.loading else 'saving'}, {fault}: {error}"
        for (beginning, call, number, fault), task in zip(cases, tasks, strict=True)
        if (error := task.exception())
    ]
    assert not said, f"{len(said)} of {len(cases)}:\n" + "\n".join(said)


def killed(beginnings: list[Beginning]) -> list[Case]:
    return [(begin, *call, KILL) for begin in beginnings for call in begin.loading + begin.saving]


def refused_saves(beginnings: list[Beginning]) -> list[Case]:
    """A disk that is full needs not say so where something is deleted; a broken one may anywhere, once or for good."""
    return [
        (begin, *call, fault)
        for begin in beginnings
        for call in begin.saving
        for fault in (FULL, BROKEN, BROKEN_FOR_GOOD)
        if fault != FULL or call[0] not in ("unlink", "unlinkat", "rmdir", "ftruncate")
    ]


def refused_loads(beginnings: list[Beginning]) -> list[Case]:
    return [(begin, *call, fault) for begin in beginnings for call in begin.loading for fault in (FULL, BROKEN)]


def test_some_calls(saves: Saves, folder: Path, beginnings: list[Beginning]) -> None:
    chance = random.Random(5)
    sweep(saves, folder, chance.sample(killed(beginnings), 8) + chance.sample(refused_saves(beginnings), 12))


@pytest.mark.slow
def test_killed_at_every_call(saves: Saves, folder: Path, beginnings: list[Beginning]) -> None:
    sweep(saves, folder, killed(beginnings))


@pytest.mark.slow
def test_every_call_of_a_save_refused(saves: Saves, folder: Path, beginnings: list[Beginning]) -> None:
    sweep(saves, folder, refused_saves(beginnings))


@pytest.mark.slow
def test_every_call_of_a_load_refused(saves: Saves, folder: Path, beginnings: list[Beginning]) -> None:
    """It may end the attempt; it must not make a good checkpoint a bad one."""
    sweep(saves, folder, refused_loads(beginnings))
