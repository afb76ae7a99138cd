"""Small programs that play a recipe, and `pitstop launch` around them; the oracle is the process table."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

TIMEOUT_SECONDS = 40
PRELUDE = '''
import json, os, signal, subprocess, sys, time
from pathlib import Path

FOLDER = Path(__file__).parent
RUN = FOLDER / "runs" / "r"

def word(**fields):
    """As rank 0 writes it: at once."""
    target = Path(os.environ["PITSTOP_OUTCOME"])
    new = target.with_suffix(".new")
    new.write_text(json.dumps({"run": str(RUN), "pid": os.getpid(), **fields}))
    os.replace(new, target)

def stopped(code, restart):
    word(state="stopped", restart=restart, reason="SIGNAL", exit_code=code, step=1)
    sys.exit(1)  # what accelerate makes of every code

def note(name, text=""):
    with open(FOLDER / name, "a") as file:
        file.write(text + "\\n")

def checkpoint(step):
    (RUN / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

def attempt():
    note("attempts")
    return len((FOLDER / "attempts").read_text().splitlines())

def daemon():
    """A grandchild of its own session that ignores every polite signal, from before this returns."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            note("daemon", str(os.getpid()))
            os.write(writing, b".")
            time.sleep(60)
        os._exit(0)
    os.wait()
    os.read(reading, 1)

def sleep_until(name):
    while not (FOLDER / name).exists():
        time.sleep(0.01)
'''


def survivors(mark: str) -> dict[int, str]:
    """Living processes whose environment has the mark -> what they are."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Fake:
    """A recipe with the given body, in a folder of its own."""

    def __init__(self, folder: Path, body: str) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.py"
        self.recipe.write_text(PRELUDE + body)
        self.mark = f"mark-{uuid.uuid4()}"
        self.out = folder / "out.txt"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PITSTOP_", "CUDA_", "ACCELERATE_"))}
        self.env |= {"TEST_MARK": self.mark, "CUDA_VISIBLE_DEVICES": ""}

    def argv(self, *flags: str, words: tuple[str, ...] = ()) -> list[str]:
        return [sys.executable, "-m", "pitstop.cli", "launch", *flags, str(self.recipe), *words]

    def start(self, *flags: str, words: tuple[str, ...] = (), before: tuple[str, ...] = (), **options):
        with open(self.out, "ab") as out:
            options = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL} | options
            argv = [*before, *self.argv(*flags, words=words)]
            self.processes.append(subprocess.Popen(argv, cwd=self.folder, env=self.env, **options))
        return self.processes[-1]

    def end(self, process: "subprocess.Popen[bytes]", seconds: float = TIMEOUT_SECONDS) -> int:
        """Its exit code; nothing of it may be left."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {survivors(self.mark)}; it said:\n{self.text}") from None
        assert survivors(self.mark) == {}, self.text
        return code

    def go(self, *flags: str, **options) -> int:
        return self.end(self.start(*flags, **options))

    def kill(self) -> None:
        """All that it left."""
        for pid in survivors(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str) -> str:
        """Empty if it is not there yet."""
        return (self.folder / name).read_text() if self.exists(name) else ""

    def wait_for(self, name: str) -> None:
        until(lambda: self.exists(name), f"{name}; it said:\n{self.text}")

    @property
    def attempts(self) -> int:
        return len(self.read("attempts").splitlines())

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""
