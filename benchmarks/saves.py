"""What a save costs the training: pitstop's, behind the next steps, against `accelerator.save_state`.

    python benchmarks/saves.py [--saves 200] [--pairs 3] [--mtbf 2h] [--folder .]

One run of a real `Session`: timm's resnet18 with momentum (89 MB), real steps. Both ways of saving take turns in it, on
the same model and optimizer, so that a noisy machine hits both. The stall of pitstop's is what `session.commit` takes
with a save more than without, and the wait of the next update for copies that are not done. `save_state` is timed as it
is, which returns while its files are only in the memory of the system; and together with an fsync of each, after which
they outlive the machine as pitstop's do. Then steps per second with `--save_every auto` against none, in blocks of one
interval each, in turns, with one save in the middle of each block that has one. Nothing is asserted; the targets stand
beside the figures. The folder should lie on the disk that runs lie on.
"""

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pitstop import augment, data, models, optim
from pitstop.accumulate import accumulate
from pitstop.config import RecipeConfig
from pitstop.flags import parse
from pitstop.machine import processor_name
from pitstop.session import Session
from pitstop.values import Directory, Duration

FREE_STEPS = 4  # before each save: what a step takes beside which nothing is written


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    saves: int = Field(200, ge=2)
    """saves of each kind, after the first"""
    pairs: int = Field(3, ge=2)
    """blocks with saves, and blocks without"""
    mtbf: Duration = "2h"
    """mean time between failures, from which --save_every auto takes its interval"""
    batch_size: int = Field(64, ge=2)
    """images per step"""
    folder: Directory = Path(".")
    """where a temporary folder is made for the run"""


class Step(NamedTuple):
    seconds: float
    commit_seconds: float


class Turn(NamedTuple):
    """One save of each kind."""

    stall_seconds: float
    slowdown_seconds: float
    documented_seconds: float
    durable_seconds: float  # of the documented way, with an fsync of each file


class Training:
    """Steps of a session whose saves come when this program asks for them."""

    def __init__(self, session: Session, batch_size: int) -> None:
        self.session = session
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (2000,), generator=generator)
        noise = data.ImageSet(pixels, labels, tuple("abcdefghij"), {"source": "noise"})
        train, _ = session.own(noise, noise)
        mean, std = data.mean_and_std(train.images_NCHW)
        change = augment.Standard(mean, std, size=32, seed=0, flip=True, shift=4, cutout=8)
        batches = data.Batches(train, batch_size, seed=0, augment=change, **session.slice)
        look = {"classes": train.classes, "channels": 3, "image_size": 32, "stem": "imagenet", "seed": 0}
        bare = models.create("resnet18", **look).to(session.device)
        self.model, self.optimizer = session.prepare(bare, optim.sgd(bare, weight_decay=5e-4))
        optim.set_lr(self.optimizer, 0.01)
        self._documented = Accelerator(cpu=session.device.type == "cpu")
        self._documented.prepare(self.model, self.optimizer)
        self._criterion = nn.CrossEntropyLoss(reduction="sum")
        session.restore(batches)
        self._batches = batches.between(session.step, session.total_steps)
        self.saves_due(math.inf)

    def saves_due(self, seconds_from_now: float) -> None:
        """The clock of --save_every, put forward or back. inf: no save; -inf: after the next step."""
        saver = self.session._saver
        saver._since = time.monotonic() + seconds_from_now - saver.interval()

    @property
    def writing(self) -> bool:
        return self.session._saver._writer._thread is not None  # until its result was taken

    def step(self) -> Step:
        begun = time.perf_counter()
        batch = next(self._batches)
        figures = accumulate(self.model, batch, self._criterion, precision=self.session.precision)
        self.session.precision.update(self.model, self.optimizer)
        computed = time.perf_counter()
        self.session.commit(figures)
        ended = time.perf_counter()
        return Step(ended - begun, ended - computed)

    def save(self, usual: Sequence[Step]) -> tuple[float, float]:
        """(stall of the step, slowdown of those beside which is written), in seconds, against the usual steps."""
        step, commit = (statistics.median(values) for values in zip(*usual, strict=True))
        self.saves_due(-math.inf)
        stall = self.step().commit_seconds - commit
        self.saves_due(math.inf)
        writer, beside = self.session._saver._writer, []
        in_commit = writer._stall
        while self.writing:
            beside.append(self.step().seconds)
        waited = writer._stall - in_commit  # before the next update, for copies that were not done
        return stall + waited, sum(beside) - len(beside) * step - waited

    def save_documented(self, folder: Path) -> tuple[float, float]:
        """Seconds of one accelerator.save_state into a new folder; and until its files are on the disk."""
        self.session._rows.pause()  # else its time would count as that of a step
        begun = time.perf_counter()
        self._documented.save_state(str(folder))
        took = time.perf_counter() - begun
        for path in (*folder.iterdir(), folder):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        durable = time.perf_counter() - begun
        shutil.rmtree(folder)
        self.session._rows.resume()
        return took, durable


def take_turns(training: Training, saves: int, folder: Path) -> tuple[list[Turn], list[Step]]:
    """Both kinds of saves, in turns, the very first included; and the steps beside which nothing was saved."""
    turns, usual = [], list[Step]()
    for _ in range(10):
        training.step()
    for number in range(saves + 1):
        training.step()  # it pays for caches that save_state has emptied
        usual += (training.step() for _ in range(FREE_STEPS))
        stall, slowdown = training.save(usual[-10 * FREE_STEPS :])
        training.step()
        turns.append(Turn(stall, slowdown, *training.save_documented(folder / f"state_{number}")))
    return turns, usual


def block(training: Training, steps: int, due: float) -> float:
    """Steps per second; `due`: seconds until a save comes, or inf."""
    training.step()
    training.saves_due(due)
    begun = time.perf_counter()
    for _ in range(steps):
        training.step()
    speed = steps / (time.perf_counter() - begun)
    training.saves_due(math.inf)
    while training.writing:
        training.step()
    return speed


def spread(name: str, values: Sequence[float], *, note: str = "") -> str:
    """A row of the table, from seconds: the first apart, which pays for what the others find."""
    first, rest = values[0], values[1:]
    cuts = statistics.quantiles(rest, n=100, method="inclusive")
    figures = (statistics.median(rest), cuts[94], cuts[98], max(rest), first)
    return f"{name:42}" + "".join(f"{1e3 * value:9.1f}" for value in figures) + (f"   {note}" if note else "")


def describe(turns: Sequence[Turn], events: Sequence[dict[str, float]], interval: float, mtbf: str) -> str:
    """The first table."""
    stalls, slowdowns, documented, durable = zip(*turns, strict=True)
    ratio, durable_ratio = (
        statistics.median(times[1:]) / statistics.median(stalls[1:]) for times in (documented, durable)
    )
    known = {key: [event[key] for event in events] for key in ("stall_seconds", "write_seconds", "slowdown_seconds")}
    cost = statistics.median(stalls[1:]) + statistics.median(known["slowdown_seconds"][1:])
    return "\n".join(
        [
            f"{f'milliseconds, n = {len(turns) - 1}':42}{'median':>9}{'p95':>9}{'p99':>9}{'max':>9}{'first':>9}",
            spread("stall of a step by pitstop's save", stalls, note="target: median <= 15, p99 <= 40"),
            spread("  of it the copy (events.jsonl)", known["stall_seconds"]),
            spread("accelerator.save_state", documented),
            spread("  and an fsync of its files", durable),
            spread("write behind the steps (events.jsonl)", known["write_seconds"]),
            spread("slowdown, as SaveCost takes it", known["slowdown_seconds"]),
            spread("slowdown, not cut at 0 and at the write", slowdowns),
            f"save_state over stall, medians: {ratio:.1f} (target: >= 10); with its fsync: {durable_ratio:.1f}",
            f"--save_every auto with --mtbf {mtbf}: every {interval:.1f} s; (stall + slowdown) / interval = "
            f"{1e3 * cost:.0f} ms / {interval:.1f} s = {100 * cost / interval:.2f} % (target: <= 1 %)",
        ]
    )


def compare(training: Training, pairs: int, interval: float, step_seconds: float) -> str:
    """Steps per second with saves and without, in turns."""
    steps = max(20, round(interval / step_seconds))
    found = []
    for number in range(pairs):
        order = (interval / 2, math.inf) if number % 2 else (math.inf, interval / 2)
        speeds = {due: block(training, steps, due) for due in order}
        found.append((speeds[interval / 2], speeds[math.inf]))
    low, middle, high = statistics.quantiles([with_saves / without for with_saves, without in found], n=4)
    medians = [statistics.median(speeds) for speeds in zip(*found, strict=True)]
    return (
        f"steps/s with --save_every auto {medians[0]:.3f}, without saves {medians[1]:.3f}; ratio {middle:.4f} "
        f"(quartiles {low:.4f} {high:.4f}, n = {pairs} pairs of {steps} steps; target: >= 0.99)"
    )


def main(config: Config) -> None:
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary)
        recipe = RecipeConfig(
            name="saves", epochs=1e9, batch_size=config.batch_size, runs_dir=folder / "runs", tracker="none",
            save_every="auto", mtbf=config.mtbf, log_every=10**9, cloud="none",
        )  # fmt: skip
        with Session.open(recipe, __file__) as session:
            training = Training(session, config.batch_size)
            turns, usual = take_turns(training, config.saves, folder)
            events = [event for event in session._attempt.run.events() if event["event"] == "save"]
            assert len(events) == len(turns), "a save failed: see above"
            step_seconds = statistics.median(step.seconds for step in usual)
            print(f"resnet18 with momentum, {events[0]['bytes'] / 1e6:.1f} MB; {1e3 * step_seconds:.1f} ms a step")
            interval = session._saver.interval()
            print(describe(turns, events, interval, config.mtbf), flush=True)
            print(compare(training, config.pairs, interval, step_seconds))


if __name__ == "__main__":
    main(parse(Config, program="python benchmarks/saves.py"))
