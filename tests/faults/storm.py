"""Runs of tests/tiny.py that are killed with -9, some hundred times: the same bits as undisturbed, nothing leaked.

    python tests/faults/storm.py --restarts 500        (make storm)

Half of the kills come at any time; the other half are aimed: right when a half-written checkpoint lies in the run's
directory. Whenever a run has come to its end it is compared with the undisturbed one, and the next begins. At the end a
table: kills, where they hit, what they cost, and what was there before and after (processes by the process table,
descriptors of the process that forks, shared memory, temporary directories, files that are no part of a run).
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.harness import TINY, Job, Run, Warm, assert_same

MARK = "STORM_MARK"  # in the environment of all that is started, to be found in the process table
# 52 steps: about two seconds, twenty saves
FLAGS = ("--epochs", "6", "--save_every", "2steps", "--keep", "2")
MOST_LOST = 5  # steps: of the interval, of the save that is in flight meanwhile, and the one that is computed just then
KNOWN = {"checkpoints", "config.json", "events.jsonl", "final", "lock", "metrics.jsonl", "samples", "status.json"}
KNOWN |= {"train.log"}


@dataclass
class Tally:
    """What has happened so far."""

    restarts: int = 0
    runs: int = 0
    idle_kills: int = 0  # before the first step of the attempt
    save_kills: int = 0  # while a checkpoint was half written
    other_kills: int = 0
    redone_steps: int = 0
    most_redone: int = 0  # steps lost by one kill
    descriptors: list[int] = field(default_factory=list)  # of a training process, at its death


def half_written(run: Run) -> list[str]:
    try:
        return [name for name in os.listdir(run.path / "checkpoints") if name.startswith(".tmp-step-")]
    except FileNotFoundError:
        return []


def kill_at_some_time(run: Run, job: Job, seconds: float) -> None:
    job.over.wait(seconds)


def kill_in_a_save(run: Run, job: Job, seconds: float) -> None:
    """At the next half-written checkpoint after so many seconds; those of earlier kills do not count."""
    if job.over.wait(seconds):
        return
    old = set(half_written(run))
    while not job.over.is_set() and not set(half_written(run)) - old:
        time.sleep(0.0002)


def attempt(run: Run, chance: random.Random, tally: Tally, seconds: float) -> bool:
    """One start, and one kill within so many seconds. Returns whether the run has come to its end before."""
    before = len(run.step_log())
    job = run.start()
    aim = kill_in_a_save if chance.random() < 0.5 else kill_at_some_time
    aim(run, job, chance.uniform(0, seconds))
    with_descriptors = len(os.listdir(f"/proc/{job.pids[0]}/fd")) if os.path.exists(f"/proc/{job.pids[0]}/fd") else 0
    job.kill()
    tally.restarts += 1
    if job.code == 0:
        return True
    assert job.codes == [-9], f"it ended by itself with {job.codes}:\n{job.text}"
    if with_descriptors:
        tally.descriptors.append(with_descriptors)
    steps = [row["step"] for row in run.step_log()]
    if half_written(run):
        tally.save_kills += 1
    elif len(steps) == before:
        tally.idle_kills += 1
    else:
        tally.other_kills += 1
    if len(steps) > before and before:
        redone = max(steps[:before]) + 1 - steps[before]
        tally.redone_steps += max(0, redone)
        tally.most_redone = max(tally.most_redone, redone)
        assert redone <= MOST_LOST, f"{redone} steps were lost by one kill"
    return False


def one_run(run: Run, clean: Run, chance: random.Random, tally: Tally, restarts: int, seconds: float) -> None:
    """Kills until the run is at its end, or there were enough; then it is left to end, and compared."""
    while tally.restarts < restarts and not attempt(run, chance, tally, seconds):
        pass
    run.finish()
    tally.runs += 1
    assert_same(run, clean)
    assert not [name for name in run.checkpoints() if name.startswith("bad-")], "a good checkpoint was set aside"
    extra = {path.name for path in run.path.iterdir()} - KNOWN
    assert not extra, f"left in the run's directory: {extra}"


def processes(mark: str) -> int:
    """With our mark in their environment."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += f"{MARK}={mark}".encode() in path.read_bytes()
        except OSError:
            continue
    return found


def shared_memory() -> list[str]:
    """What lies in /dev/shm, but for the folders that other tests have there and what a living process uses: those of
    the storm are dead when it is asked for, others beside it are not."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            used |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
    names = {path.name for path in Path("/dev/shm").glob("*") if not path.name.startswith("pitstop-test-")}
    return sorted(names - used)


def census(warm: Warm, mark: str, temporary: Path) -> dict[str, int]:
    return {
        "processes": processes(mark),
        "descriptors of the process that forks": len(os.listdir(f"/proc/{warm.pid}/fd")),
        "descriptors of this process": len(os.listdir("/proc/self/fd")),
        "entries of /dev/shm": len(shared_memory()),
        "temporary files": len(list(temporary.rglob("*"))),
    }


def storm(folder: Path, restarts: int, seed: int) -> tuple[Tally, dict[str, tuple[int, int]]]:
    """Raises AssertionError at the first difference from the undisturbed run. Returns what happened, and counts of what
    was there before and after."""
    chance, tally, mark = random.Random(seed), Tally(), f"{os.getpid()}-{time.monotonic_ns()}"
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    recipe = Path(shutil.copy(TINY, folder))  # whoever edits it meanwhile begins another run
    warm = Warm(**{MARK: mark, "TMPDIR": str(temporary)})
    try:
        clean = Run(warm, folder / "clean", *FLAGS, recipe=recipe)
        clean.finish()
        begun = time.monotonic()
        Run(warm, folder / "again", *FLAGS, recipe=recipe).finish()
        seconds = (time.monotonic() - begun) / 2  # so that a run is killed a few times before its end
        before = census(warm, mark, temporary)
        while tally.restarts < restarts:
            run = folder / f"run-{tally.runs}"
            one_run(Run(warm, run, *FLAGS, recipe=recipe), clean, chance, tally, restarts, seconds)
            shutil.rmtree(run)
            print(f"{tally.restarts} restarts, {tally.runs} runs: the same bits", flush=True)
        after = census(warm, mark, temporary)
    finally:
        warm.close()
    assert processes(mark) == 0, "something outlives the process that forks"
    return tally, {name: (before[name], after[name]) for name in before}


def table(tally: Tally, counts: dict[str, tuple[int, int]], seconds: float) -> str:
    kills = tally.save_kills + tally.other_kills + tally.idle_kills
    lines = [
        ("restarts", tally.restarts),
        ("runs that came to their end, all with the same bits", tally.runs),
        ("kills", kills),
        ("  while a checkpoint was half written", tally.save_kills),
        ("  between two saves", tally.other_kills),
        ("  before the first step", tally.idle_kills),
        ("steps done again", tally.redone_steps),
        ("  by one kill, at most", tally.most_redone),
        ("descriptors of a training process, at most", max(tally.descriptors, default=0)),
        ("seconds", round(seconds)),
    ]
    rows = [f"{name:55}{value:>8}" for name, value in lines]
    rows += ["", f"{'':55}{'before':>8}{'after':>8}"]
    rows += [f"{name:55}{before:>8}{after:>8}" for name, (before, after) in counts.items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pitstop-storm-") as folder:
        tally, counts = storm(Path(folder), given.restarts, given.seed)
    print(table(tally, counts, time.monotonic() - begun))
    leaks = {name: pair for name, pair in counts.items() if pair[1] > pair[0]}
    sys.exit(f"LEAKED: {leaks}" if leaks else 0)


if __name__ == "__main__":
    main()
