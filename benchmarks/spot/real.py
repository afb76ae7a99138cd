"""Real runs of recipes/digits.py, whose whole process tree is killed with -9 again and again."""

import contextlib
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from pitstop.files import read_lines

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "digits.py"
BATCH_SIZE = 64
LOOK_EVERY_SECONDS = 0.05
START_WITHIN_SECONDS = 300


class Run:
    """One run, over any number of attempts. It records every step, so that its files tell what a kill has cost."""

    def __init__(self, folder: Path, model: str, *flags: str) -> None:
        folder.mkdir(parents=True)
        self.path, self._log = folder / "r", folder / "out.txt"
        recipe_flags = f"--model {model} --batch_size {BATCH_SIZE} --epochs 100000 --log_every 1 --eval_every 0"
        how = f"--name r --runs_dir {folder} --tracker none --cloud none --store="
        launch = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPE)]
        self._command = [*launch, *recipe_flags.split(), *how.split(), *flags]

    def start(self) -> "Attempt":
        with open(self._log, "ab") as log:
            begun = time.monotonic()
            process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return Attempt(self, process, begun)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.path / "events.jsonl") if event["event"] == kind]

    def rows(self) -> list[dict[str, Any]]:
        """One for each step, in the order of the steps."""
        return read_lines(self.path / "metrics.jsonl")

    def done(self) -> int:
        """Steps that were done, as the last line of metrics.jsonl says; a restore cuts them to those that count."""
        return max((row["step"] for row in self.rows()), default=0)

    def durable(self) -> int:
        """The step at which an attempt would continue."""
        names = [path.name for path in (self.path / "checkpoints").glob("step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


@dataclass
class Attempt:
    """A launcher and all that it has started."""

    run: Run
    process: "subprocess.Popen[bytes]"
    begun: float

    def first_step(self) -> float:
        """Waits for the end of its first new step. Returns the seconds since its process began."""
        attempts = len(self.run.events("attempt"))
        while time.monotonic() - self.begun < START_WITHIN_SECONDS and self.process.poll() is None:
            time.sleep(LOOK_EVERY_SECONDS)
            starts = self.run.events("start")
            if starts and self.run.events("attempt")[attempts:] and starts[-1]["attempt"] > attempts:
                new = [row for row in self.run.rows() if row["time"] >= starts[-1]["time"]]
                if new:
                    return time.monotonic() - self.begun
        self.kill()
        raise RuntimeError(f"{self.run.path}: no step after {time.monotonic() - self.begun:.0f} s:\n{self.run.said()}")

    def kill(self) -> float:
        """kill -9 of the launcher and everything below it. Returns the seconds that were paid."""
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            tree = [launcher, *launcher.children(recursive=True)]
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            paid = time.monotonic() - self.begun
            self.process.wait()
            _, alive = psutil.wait_procs(tree[1:], timeout=30)
            assert not alive, f"still there after kill -9: {alive}"
            return paid
        raise RuntimeError(f"{self.run.path}: it ended by itself:\n{self.run.said()}")


def free_step(run: Run) -> float:
    """Mean seconds of a step beside which nothing was written, without the first of each attempt. `run.rows` keeps
    those that counted."""
    first = {event["step"] + 1 for event in run.events("start")}
    busy = [(_instant(save) - save["write_seconds"], _instant(save)) for save in run.events("save")]
    free = []
    for row in run.rows():
        took = BATCH_SIZE / row["images_per_second"]
        ended = _instant(row)
        beside = any(begin < ended and ended - took < end for begin, end in busy)
        if not beside and row["step"] not in first:
            free.append(took)
    if not free:
        raise RuntimeError(f"{run.path}: no step that was not beside a write: longer attempts are needed")
    return statistics.fmean(free)


def _instant(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["time"]).timestamp()


@dataclass(frozen=True)
class Measured:
    """What a run on this machine costs beside its steps: all that the model needs to know."""

    step_seconds: float
    stall_seconds: float
    slowdown_seconds: float
    write_seconds: float
    restarts: list[float]  # from the start of a process to its first new step
    lost_steps: list[int]  # by each kill

    @property
    def restart_seconds(self) -> float:
        return statistics.fmean(self.restarts)


def storm(run: Run, kills: int, calm: float, calm_between: float, seed: int) -> Measured:
    """Kills a run, `calm` seconds after its first step, then at random instants about `calm_between` after that; the
    last attempt only tells where it continues."""
    chance, restarts, lost = random.Random(seed), list[float](), list[int]()
    for number in range(kills + 1):
        done = run.done()
        attempt = run.start()
        restarts.append(attempt.first_step())
        if number:
            lost.append(done - run.events("start")[-1]["step"])
            print(f"kill {number}: {lost[-1]} steps lost; first new step after {restarts[-1]:.1f} s", flush=True)
        time.sleep(calm if not number else chance.uniform(0, 2 * calm_between) if number < kills else 0)
        attempt.kill()
    saves = run.events("save")
    if not saves:
        raise RuntimeError(f"{run.path}: no save: longer attempts are needed")
    step = free_step(run)
    return Measured(
        step_seconds=step,
        stall_seconds=statistics.median(save["stall_seconds"] for save in saves),
        slowdown_seconds=statistics.median(save["slowdown_seconds"] for save in saves),
        write_seconds=statistics.median(save["write_seconds"] for save in saves),
        restarts=[seconds - step for seconds in restarts],
        lost_steps=lost,
    )


def replay(run: Run, up_seconds: tuple[float, ...]) -> tuple[float, int, float]:
    """Lives through a trace. Returns (seconds paid, steps that counted, seconds of such a step)."""
    paid = 0.0
    for up in up_seconds:
        attempt = run.start()
        time.sleep(max(0.0, attempt.begun + up - time.monotonic()))
        paid += attempt.kill()
    kept = run.durable()
    return paid, kept, free_step(run) if kept else 0.0


def documented_save(folder: Path, model: str, saves: int) -> float:
    """Median seconds of `accelerator.save_state` of the model with momentum, into a new folder each time."""
    import torch
    from accelerate import Accelerator

    from pitstop import models, optim

    look = {"classes": tuple("0123456789"), "channels": 1, "image_size": 32, "stem": "imagenet", "seed": 0}
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    network = models.create(model, **look).to(accelerator.device)
    optimizer = optim.sgd(network, weight_decay=5e-4)
    optim.zero_momentum(optimizer)
    accelerator.prepare(network, optimizer)
    times = []
    for number in range(saves + 1):
        begun = time.perf_counter()
        accelerator.save_state(str(folder / f"epoch_{number}"))
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
