"""Runs of `tests/tiny.py` through the warm process: start, kill, look at what they left."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pitstop.files import read_lines
from pitstop.record import WALL_CLOCK_FIELDS

TESTS = Path(__file__).resolve().parents[1]
TINY = TESTS / "tiny.py"
TIMEOUT_SECONDS = 120
UNDER_WAY = {"SAVES_WAIT": ""}  # a save may be, when a kill comes
LONG_FORM = os.environ.get("PITSTOP_TEST_SWEEP") == "all"  # as `make storm` says it


@dataclass
class Job:
    """A started program, of one process or several ranks."""

    out: Path
    pids: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def signal(self, number: int, rank: int | None = None) -> None:
        for pid in self.pids if rank is None else [self.pids[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> "Job":
        """Kill -9, all ranks."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> "Job":
        if not self.over.wait(seconds):
            self.signal(signal.SIGKILL)
            self.over.wait(10)
            raise AssertionError(f"still running after {seconds} s; it said:\n{self.text}")
        return self

    @property
    def code(self) -> int:
        """Of the job: of a rank that failed by itself, before that of one that was killed with it."""
        return max(self.codes) if max(self.codes) > 0 else min(self.codes)

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""


class Warm:
    """The warm process; see `warm.py`."""

    def __init__(self, **env: str) -> None:
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._ready = threading.Event()
        self._write = threading.Lock()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PITSTOP_", "WANDB_", "ACCELERATE_"))}
        self._environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_MODE": "offline",
            "PITSTOP_REPORT": "no",
            **environment,
            **env,
        }
        self._process = subprocess.Popen(
            [sys.executable, TESTS / "faults" / "warm.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "ready" in answer:
                self._ready.set()
                continue
            job = self._jobs[answer["id"]]
            if "pids" in answer:
                job.pids = answer["pids"]
                job.started.set()
            else:
                job.codes = answer["codes"]
                job.over.set()
        self._ready.set()  # it has ended: who waits need not wait longer

    def start(self, argv: list[Any], *, cwd: Path, out: Path, ranks: int = 1, env: dict[str, str] | None = None) -> Job:
        assert self._ready.wait(300), "the warm process does not start"
        assert self._process.poll() is None, "the warm process has ended: the imports of tests/faults/warm.py fail?"
        with self._write:
            number = next(self._numbers)
            job = self._jobs[number] = Job(out)
            request = {
                "id": number,
                "argv": [str(word) for word in argv],
                "env": self._environment | (env or {}),
                "cwd": str(cwd),
                "ranks": ranks,
                "out": str(out),
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        assert job.started.wait(60), "the warm process does not fork"
        return job

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(10)
        self._process.stdout.close()


class Run:
    """One run of tiny.py in a folder of its own, over any number of attempts."""

    def __init__(self, warm: Warm, folder: Path, *flags: str, ranks: int = 1, recipe: Path = TINY, **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.warm, self.folder, self.flags, self.ranks, self.recipe, self.env = warm, folder, flags, ranks, recipe, env
        self.path = folder / "runs" / "r"
        self.attempts = 0

    def start(self, *flags: str, ranks: int | None = None, out: Path | None = None, **env: str) -> Job:
        self.attempts += 1
        argv = [self.recipe, "--name", "r", "--tracker", "none", *self.defaults(), *self.flags, *flags]
        env = {"STEP_LOG": str(self.folder / "steps.jsonl")} | self.env | env
        out = out or self.folder / f"out-{self.attempts}.txt"
        return self.warm.start(argv, cwd=self.folder, out=out, ranks=ranks or self.ranks, env=env)

    def defaults(self) -> list[str]:
        return [] if "--precision" in self.flags else ["--precision", "fp32"]

    def go(self, *flags: str, ranks: int | None = None, **env: str) -> Job:
        """An attempt, to its end."""
        return self.start(*flags, ranks=ranks, **env).wait()

    def finish(self, *flags: str, ranks: int | None = None, **env: str) -> Job:
        """An attempt that must finish the run."""
        job = self.go(*flags, ranks=ranks, **env)
        assert job.codes == [0] * (ranks or self.ranks), job.text
        assert self.status()["state"] == "finished"
        return job

    def killed(self, at: str, **env: str) -> Job:
        """An attempt that must be killed at the instant `at`. Saves before it are done, on however slow a disk: but for
        `**UNDER_WAY`."""
        job = self.go(**{"KILL_AT": at, "SAVES_WAIT": "1"} | self.env | env)
        assert -signal.SIGKILL in job.codes, f"{at} did not happen: {job.codes}\n{job.text}"
        return job

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "status.json").read_text()))

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.path / "events.jsonl") if event["event"] == kind]

    def log(self) -> str:
        return (self.path / "train.log").read_text()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without what a clock has measured."""
        text = (self.path / "metrics.jsonl").read_text()
        assert text.endswith("\n")
        rows = [json.loads(line) for line in text.splitlines()]
        return [{k: v for k, v in row.items() if k not in WALL_CLOCK_FIELDS} for row in rows]

    def final(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.path / "final").iterdir())}

    def checkpoints(self) -> list[str]:
        folder = self.path / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def manifest(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.path / "checkpoints" / name / "manifest.json").read_text()))

    def step_log(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "steps.jsonl")

    def samples(self) -> dict[int, list[list[Any]]]:
        """Step -> its samples over all ranks, by position, each exactly once per computation of the step.

        A step that was computed again after a kill must have been the same each time.
        """
        found: dict[int, dict[int, list[Any]]] = {}
        for row in self.step_log():
            step = found.setdefault(row["step"], {})
            for sample in row["samples"]:
                assert step.setdefault(sample[0], sample) == sample, f"step {row['step']} was another the second time"
        return {step: [samples[position] for position in sorted(samples)] for step, samples in sorted(found.items())}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `folder`: time of its last change, and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same(run: Run, clean: Run) -> None:
    """`run` ended as the uninterrupted `clean` did: the same bytes, the same rows, every step, nothing left over."""
    assert run.final() == clean.final()
    rows = run.rows()
    keys = [(row["kind"], row["step"]) for row in rows]
    assert len(keys) == len(set(keys)), f"rows are double: {keys}"
    assert rows == clean.rows()
    assert run.samples() == clean.samples()
    assert set(run.samples()) == set(range(run.status()["total_steps"]))
    names = run.checkpoints()
    assert not [name for name in names if not name.startswith(("step-", "bad-"))], names
    assert [name for name in names if name.startswith("step-")][-1] == f"step-{run.status()['total_steps']:08d}"
    assert not list(run.path.rglob(".*")), "temporary files are left"
    assert run.status()["state"] == "finished"
