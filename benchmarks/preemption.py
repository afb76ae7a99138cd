"""What machines that are taken away cost: goodput of a run on a trace of preemptions, with figures of this machine.

    python benchmarks/preemption.py [--trace FILE] [--kills 20] [--replay_seconds 400] [--epoch_seconds 10]

1. Measured: recipes/digits.py (timm's resnet18 with momentum) under `accelerate launch`, killed with its whole process
   tree by kill -9, `--kills` times: restart time (start of the process to its first new step), cost of a save, time of
   its write, steps that were lost; and `accelerator.save_state` of the same model and optimizer.
2. The model checked: the first periods of the trace's first zone, divided so that they take `--replay_seconds`, with
   real processes that are killed at its instants; --mtbf is divided likewise. Goodput by the model, with the figures of
   1, against that of the processes: steps of the newest checkpoint times the seconds of a step, over the wall clock
   from each start to its kill.
3. Modelled: every zone of the trace, with steps of `--epoch_seconds / --epoch_steps`, for pitstop with --save_every
   auto, and for the same training that saves at each epoch's end with `accelerator.save_state` and continues there.

Goodput is the time in steps that counted over the paid time: all the time in which the machine was up. No notice ever
comes in the model. The start of the machine itself, before the process, is not in the trace and not in the model, and
restarts are those of this machine, which has no GPU to wake if none is shown. The trace that is used without --trace
was made by `--generate` (see `spot.model.generated`); `--replay_seconds 0` leaves the second part out.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from spot.model import (
    Outcome,
    Policy,
    Trace,
    by_clock,
    generated,
    ideal,
    read_traces,
    simulate,
    young,
)
from spot.real import Measured, Run, documented_save, replay, storm

from pitstop.errors import BAD_USAGE, UserError
from pitstop.flags import parse
from pitstop.machine import processor_name
from pitstop.session.cost import FIRST_SECONDS
from pitstop.values import Directory, Duration, seconds

TARGET = 99.0  # % goodput


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trace: Path = Path(__file__).with_name("trace-example.json")
    """periods in which a machine was up and down"""
    generate: bool = False
    """print the trace that is used without --trace, and leave"""
    kills: int = Field(20, ge=2)
    """kill -9 of the whole process tree"""
    mtbf: Duration = "2h"
    """mean time between failures, from which --save_every auto takes its interval"""
    epoch_seconds: float = Field(10, gt=0)
    """of the modelled training: resnet18 on CIFAR-10 on a T4, about"""
    epoch_steps: int = Field(100, ge=1)
    """steps in such an epoch: 50,000 images by 500"""
    replay_seconds: float = Field(400, ge=0)
    """up time of the replay with real processes; a short one is mostly restarts, whose time varies"""
    replay_periods: int = Field(10, ge=1)
    """periods of the trace that it covers"""
    calm_seconds: float = Field(30, gt=0)
    """of training before the first kill, in which saves are measured"""
    model: str = "resnet18"
    """timm model of the real runs"""
    seed: int = 0
    """of the instants of the kills"""
    folder: Directory = Path(".")
    """where a temporary folder is made for the runs"""


def ours(measured: Measured, step_seconds: float, mtbf_seconds: float) -> Policy:
    """pitstop with --save_every auto."""
    stall, slowdown, write = measured.stall_seconds, measured.slowdown_seconds, measured.write_seconds
    interval = young(stall + slowdown, mtbf_seconds, write)
    return by_clock(
        measured.restart_seconds, step_seconds,
        first=FIRST_SECONDS, interval=interval, stall=stall, slowdown=slowdown, write=write,
    )  # fmt: skip


def every_epoch(measured: Measured, step_seconds: float, steps: int, save_seconds: float) -> Policy:
    """The documented way; its restart is taken to be as fast as ours."""
    return Policy(measured.restart_seconds, step_seconds, steps, steps, save_seconds)


def spread(values: list[float], unit: str) -> str:
    return f"median {statistics.median(values):.1f}{unit} ({min(values):.1f} to {max(values):.1f}, n={len(values)})"


def describe(measured: Measured, documented: float) -> str:
    return (
        f"restart, process to first new step  {spread(measured.restarts, ' s')}\n"
        f"lost steps by a kill                {spread([float(n) for n in measured.lost_steps], '')}\n"
        f"a save of ours                      stall {1e3 * measured.stall_seconds:.1f} ms, slowdown "
        f"{1e3 * measured.slowdown_seconds:.0f} ms, durable after {1e3 * measured.write_seconds:.0f} ms\n"
        f"accelerator.save_state              {1e3 * documented:.0f} ms\n"
        f"a step of these runs                {1e3 * measured.step_seconds:.1f} ms"
    )


def table(trace: Trace, outcomes: dict[str, Outcome]) -> str:
    """Where the paid time of each way went, and how long the steps that ours has kept would have been paid for."""
    useful = next(iter(outcomes.values())).useful_seconds
    up, down = sum(trace.up_seconds), sum(trace.down_seconds)
    lines = [
        f"{trace.zone}: {len(trace.up_seconds)} periods, median {statistics.median(trace.up_seconds) / 60:.0f} min, "
        f"{up / 3600:.1f} h up, {down / 3600:.1f} h down",
        f"  {'':28}{'goodput':>9}{'restarts':>10}{'saves':>8}{'redone':>8}{'redone steps':>14}"
        f"{'paid h for the same steps':>27}",
    ]
    for name, outcome in outcomes.items():
        shares = (outcome.restart_seconds, outcome.save_seconds, outcome.redone_seconds)
        restart, save, redone = (100 * share / outcome.paid_seconds for share in shares)
        hours = useful / outcome.goodput / 3600 if outcome.goodput else float("inf")
        lines.append(
            f"  {name:28}{100 * outcome.goodput:8.2f}%{restart:9.2f}%{save:7.2f}%{redone:7.2f}%"
            f"{outcome.redone_steps:14,}{hours:27.2f}"
        )
    return "\n".join(lines)


def check(config: Config, trace: Trace, measured: Measured, folder: Path) -> str:
    """The model against real processes. Returns one line."""
    squeezed, scale = trace.squeezed(config.replay_periods, config.replay_seconds)
    mtbf = seconds(config.mtbf) / scale
    run = Run(folder, config.model, "--save_every", "auto", "--mtbf", f"{mtbf:.3f}s")
    paid, kept, step = replay(run, squeezed.up_seconds)
    real = 100 * kept * step / paid
    modelled = simulate(ours(measured, measured.step_seconds, mtbf), squeezed)
    return (
        f"replay of {len(squeezed.up_seconds)} periods of {trace.zone}, times divided by {scale:.0f}: "
        f"goodput modelled {100 * modelled.goodput:.1f} %, measured {real:.1f} %, "
        f"{real - 100 * modelled.goodput:+.1f} points (target: within 2); steps kept modelled {modelled.kept_steps}, "
        f"measured {kept} of {1e3 * step:.1f} ms, in {paid:.0f} s paid"
    )


def summary(goodputs: dict[str, tuple[float, float]], replayed: str) -> str:
    """The last line: (ours, documented) for each zone, in %."""
    zones = "; ".join(
        f"{zone} {mine:.2f} % (documented way {theirs:.2f} %)" for zone, (mine, theirs) in goodputs.items()
    )
    reached = "reached" if all(mine >= TARGET for mine, _ in goodputs.values()) else "MISSED"
    return f"goodput: {zones}; target {TARGET:g} %: {reached}{'; ' if replayed else ''}{replayed}"


def main(config: Config) -> None:
    if config.generate:
        print(generated(), end="")
        return
    try:
        traces = read_traces(config.trace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_USAGE)
    print(processor_name())
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary)
        run = Run(folder / "storm", config.model, "--save_every", "2s")
        measured = storm(run, config.kills, config.calm_seconds, 3.0, config.seed)
        documented = documented_save(folder / "documented", config.model, 20)
        print(describe(measured, documented), flush=True)
        replayed = check(config, traces[0], measured, folder / "replay") if config.replay_seconds else ""
    if replayed:
        print(replayed)
    step, goodputs = config.epoch_seconds / config.epoch_steps, dict[str, tuple[float, float]]()
    mine = ours(measured, step, seconds(config.mtbf))
    print(
        f"modelled: a step of {1e3 * step:.0f} ms; pitstop saves every {mine.steps * step:.1f} s (--mtbf {config.mtbf})"
    )
    for trace in traces:
        first = simulate(mine, trace)
        other = simulate(every_epoch(measured, step, config.epoch_steps, documented), trace)
        outcomes = {"pitstop": first, "save_state at each epoch": other, "no failure, no saves": ideal(first)}
        print(table(trace, outcomes))
        goodputs[trace.zone] = (100 * first.goodput, 100 * other.goodput)
    print(summary(goodputs, replayed.partition(" (target")[0].rpartition(": ")[2]))


if __name__ == "__main__":
    main(parse(Config, program="python benchmarks/preemption.py"))
