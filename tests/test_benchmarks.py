"""The benchmarks' own arithmetic: a figure that is computed wrongly is worse than none."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pitstop.errors import UserError
from pitstop.session.cost import FIRST_SECONDS
from pitstop.values import seconds

# Before the folders of tests, in which a file may have the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import preemption
import saves
from spot.model import Outcome, Policy, Trace, attempt, by_clock, generated, ideal, read_traces, simulate, young
from spot.real import Attempt, Measured, Run, free_step

BENCHMARKS = Path(preemption.__file__).parent
CLOCKED = Policy(
    10.0, 1.0, first_steps=5, steps=20, stall_seconds=0.5, slowdown_seconds=0.5, write_seconds=2.0
)  # saves begin at 15 s, 36 s and 57 s of an attempt, and are durable 2.5 s later
EPOCHS = Policy(8.0, 0.1, first_steps=100, steps=100, stall_seconds=0.5)


@pytest.mark.parametrize(
    ("policy", "up", "useful", "restart", "saving", "redone", "kept_steps", "redone_steps"),
    [
        (CLOCKED, 0.0, 0, 0, 0, 0, 0, 0),
        (CLOCKED, 7.5, 0, 7.5, 0, 0, 0, 0),  # killed while it starts
        (CLOCKED, 10.0, 0, 10, 0, 0, 0, 0),
        (CLOCKED, 14.5, 0, 10, 0, 4.5, 0, 4),  # before the first save
        (CLOCKED, 17.25, 0, 10, 1, 6.25, 0, 6),  # while it is written
        (CLOCKED, 17.5, 5, 10, 1, 1.5, 5, 1),  # it is durable just now
        (CLOCKED, 57.25, 25, 10, 2.25, 20, 25, 20),  # in the stall of the third save
        (CLOCKED, 59.0, 25, 10, 3, 21, 25, 21),  # while it is written: back to the second
        (CLOCKED, 60.0, 45, 10, 3, 2, 45, 2),
        (EPOCHS, 8 + 3 * 10.5 + 4, 30, 8, 1.5, 4, 300, 40),  # in the fourth epoch
        (EPOCHS, 8 + 10.4, 0, 8, 0.4, 10, 0, 100),  # in save_state: what it has written is torn
    ],
)
def test_one_attempt(
    policy: Policy, up: float, useful: float, restart: float, saving: float, redone: float, kept_steps: int,
    redone_steps: int,
) -> None:  # fmt: skip
    found = attempt(policy, up)
    assert (found.kept_steps, found.redone_steps) == (kept_steps, redone_steps)
    spent = (found.paid_seconds, found.useful_seconds, found.restart_seconds, found.save_seconds, found.redone_seconds)
    assert spent == pytest.approx((up, useful, restart, saving, redone), abs=1e-6)


def by_milliseconds(policy: Policy, up: float) -> tuple[int, int]:
    """(steps kept, steps done) by a walk through every millisecond, without a formula."""

    def milliseconds(value: float) -> int:
        return round(1000 * value)

    clock, done, kept, since, due = milliseconds(policy.restart_seconds), 0, 0, 0, policy.first_steps
    step, pause = milliseconds(policy.step_seconds), milliseconds(policy.stall_seconds + policy.slowdown_seconds)
    in_step, durable = 0, list[tuple[int, int]]()
    while clock < milliseconds(up):
        clock += 1
        if pause and since == due:
            pause -= 1
            if not pause:
                since, due, pause = 0, policy.steps, milliseconds(policy.stall_seconds + policy.slowdown_seconds)
        else:
            in_step += 1
            if in_step == step:
                in_step, done, since = 0, done + 1, since + 1
                if since == due:
                    durable.append((clock + milliseconds(policy.stall_seconds + policy.write_seconds), done))
        kept = max([kept, *(steps for at, steps in durable if at <= clock)])
    return kept, done


def test_the_model_agrees_with_a_walk_through_every_millisecond() -> None:
    chance = random.Random(0)
    for _ in range(60):
        draw = [chance.randrange(1, 500) / 1000 for _ in range(5)]
        policy = Policy(draw[0], draw[1], chance.randrange(1, 4), chance.randrange(2, 6), *draw[2:])
        up = chance.randrange(1, 6000) / 1000
        found = attempt(policy, up)
        kept, done = by_milliseconds(policy, up)
        assert (found.kept_steps, found.kept_steps + found.redone_steps) == (kept, done), (policy, up)


def test_a_trace_is_its_attempts_and_all_paid_time_is_accounted_for() -> None:
    trace = Trace("zone", (60.0, 59.0, 7.5, 17.5), (1.0, 2.0))
    whole = simulate(CLOCKED, trace)
    assert (whole.kept_steps, whole.redone_steps) == (45 + 25 + 0 + 5, 2 + 21 + 0 + 1)
    assert whole.paid_seconds == 144.0
    parts = (whole.useful_seconds, whole.restart_seconds, whole.save_seconds, whole.redone_seconds)
    assert sum(parts) == pytest.approx(144.0)
    assert whole.goodput == pytest.approx(75 / 144)
    assert Outcome().goodput == 0.0
    assert (ideal(whole).goodput, ideal(whole).paid_seconds, ideal(whole).kept_steps) == (1.0, 75.0, 75)


def test_intervals() -> None:
    assert young(0.02, 3600, 0.2) == pytest.approx(12.0)
    assert young(0.0, 3600, 0.2) == 0.2  # never shorter than the write
    policy = by_clock(8, 0.1, first=5, interval=12, stall=0.01, slowdown=0.1, write=0.2)
    assert (policy.first_steps, policy.steps) == (50, 119)  # 119 steps and 0.11 s are 12.01 s; 118 were 11.91 s
    slow = by_clock(8, 30, first=5, interval=12, stall=0.01, slowdown=0.1, write=0.2)
    assert (slow.first_steps, slow.steps) == (1, 1)


def test_ours_and_the_documented_way() -> None:
    measured = Measured(0.2, 0.02, 0.08, 0.3, [7.0, 9.0], [3])
    ours = preemption.ours(measured, 0.1, 7200.0)
    assert (ours.restart_seconds, ours.first_steps) == (8.0, round(FIRST_SECONDS / 0.1))
    assert ours.steps == 379  # sqrt(2 x 0.1 s x 7200 s) is 37.9 s, of which 0.1 s is no step
    assert preemption.every_epoch(measured, 0.1, 100, 0.25) == Policy(8.0, 0.1, 100, 100, 0.25)


def test_traces(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    zone = {"gap_seconds": 32, "up_seconds": [64, 32.5], "down_seconds": []}
    file.write_text(json.dumps({"source": "s", "zones": {"b": zone, "a": zone | {"down_seconds": [1]}}}))
    assert read_traces(file) == [Trace("b", (64.0, 32.5), ()), Trace("a", (64.0, 32.5), (1.0,))]


NO_TRACES = ["", "[]", "{}", '{"zones": {}}', '{"zones": {"a": {}}}']
NO_TRACES += [
    f'{{"zones": {{"a": {{"up_seconds": [{bad}], "down_seconds": []}}}}}}' for bad in ("", "-1", "null", '"x"', "1e999")
]


@pytest.mark.parametrize("text", NO_TRACES)
def test_a_file_that_is_no_trace_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"trace\.json.*was expected"):
        read_traces(file)
    with pytest.raises(UserError, match=r"none\.json"):
        read_traces(tmp_path / "none.json")


def test_the_example_is_what_the_generator_makes() -> None:
    assert (BENCHMARKS / "trace-example.json").read_text() == generated()
    [trace] = read_traces(BENCHMARKS / "trace-example.json")
    assert (len(trace.up_seconds), len(trace.down_seconds)) == (30, 31)
    assert all(up % 32 == 0 and up > 0 for up in trace.up_seconds)
    [many] = json.loads(generated(seed=1, periods=20000))["zones"].values()
    assert sum(many["up_seconds"]) / 20000 == pytest.approx(7200, rel=0.03)
    assert sum(up > 7200 for up in many["up_seconds"]) / 20000 == pytest.approx(0.368, abs=0.01)  # 1/e: exponential


def test_a_trace_is_squeezed_into_the_time_there_is() -> None:
    trace = Trace("zone", (100.0, 300.0, 800.0), (5.0,))
    assert trace.squeezed(2, 40.0) == (Trace("zone", (10.0, 30.0), ()), 10.0)
    assert trace.squeezed(9, 1e6) == (Trace("zone", trace.up_seconds, ()), 1.0)  # never stretched


def test_table_and_summary() -> None:
    mine = Outcome(7200.0, 7128.0, 36.0, 18.0, 18.0, kept_steps=71280, redone_steps=180)
    other = Outcome(7200.0, 6480.0, 360.0, 180.0, 180.0, kept_steps=64800, redone_steps=1800)
    text = preemption.table(
        Trace("b", (3600.0, 3600.0), (1800.0,)), {"pitstop": mine, "other": other, "ideal": ideal(mine)}
    )
    assert [line.split()[1:] for line in text.splitlines()[2:]] == [
        ["99.00%", "0.50%", "0.25%", "0.25%", "180", "2.00"],
        ["90.00%", "5.00%", "2.50%", "2.50%", "1,800", "2.20"],
        ["100.00%", "0.00%", "0.00%", "0.00%", "0", "1.98"],
    ]
    assert "2 periods, median 60 min, 2.0 h up, 0.5 h down" in text
    line = preemption.summary({"b": (99.0, 90.0), "c": (98.99, 90.0)}, "")
    assert (
        line == "goodput: b 99.00 % (documented way 90.00 %); c 98.99 % (documented way 90.00 %); target 99 %: MISSED"
    )
    assert preemption.summary({"b": (99.0, 90.0)}, "replay").endswith("target 99 %: reached; replay")


def instant(second: float) -> str:
    return f"2026-01-01T00:00:{second:06.3f}+00:00"


def test_what_a_run_has_left_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "resnet18")
    assert (run.done(), run.durable()) == (0, 0)
    for name in ("step-00000004", "step-00000012", "bad-step-00000090-1", ".tmp-step-00000080-1"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    # Steps of 0.5 s, but the first of 5 s and those beside the write, which lasts from 7.2 s to 8.4 s, of 1 s.
    rows, at = [], 0.0
    for step, took in enumerate((5, 0.5, 0.5, 0.5, 1, 1, 0.5), start=1):
        at += took
        rows.append({"kind": "train", "step": step, "time": instant(at), "images_per_second": 64 / took})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99')
    events = [
        {"event": "attempt", "time": instant(0.0), "attempt": 1},
        {"event": "start", "time": instant(0.0), "attempt": 1, "step": 0},
        {"event": "save", "time": instant(8.4), "attempt": 1, "step": 4, "write_seconds": 1.2},
    ]
    (run.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert (run.done(), run.durable()) == (7, 12)
    assert free_step(run) == pytest.approx(0.5)


def test_no_process_is_left_after_a_kill(tmp_path: Path) -> None:
    """Neither a grandchild nor one in a session of its own, as W&B's service is."""
    run = Run(tmp_path / "run", "resnet18")
    process = subprocess.Popen(["sh", "-c", "sh -c 'sleep 321.5; true' & setsid sleep 321.5 & wait"])
    attempted = Attempt(run, process, time.monotonic())
    deadline = time.monotonic() + 10
    while len(below := psutil.Process(process.pid).children(recursive=True)) < 3:
        assert time.monotonic() < deadline, below
        time.sleep(0.01)
    assert 0 < attempted.kill() < 20
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert process.returncode == -9


def test_an_attempt_that_ended_by_itself_is_no_kill(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "resnet18")
    (tmp_path / "run" / "out.txt").write_text("the reason why")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(RuntimeError, match="the reason why"):
        Attempt(run, process, time.monotonic()).kill()


def test_the_table_of_saves_keeps_the_first_apart() -> None:
    words = saves.spread("name", [9.0, *(n / 1000 for n in range(1, 102))], note="note").split()
    assert words == ["name", "51.0", "96.0", "100.0", "101.0", "9000.0", "note"]
    turns = [saves.Turn(1.0, 1.0, 1.0, 1.0), *(saves.Turn(0.01, 0.2, 0.25, 0.4) for _ in range(5))]
    event = {"stall_seconds": 0.005, "write_seconds": 0.3, "slowdown_seconds": 0.09}
    text = saves.describe(turns, [event | {"slowdown_seconds": 7.0}, *[event] * 5], 25.0, "2h")
    assert "n = 5 " in text
    assert "save_state over stall, medians: 25.0 (target: >= 10); with its fsync: 40.0" in text
    assert "with --mtbf 2h: every 25.0 s; (stall + slowdown) / interval = 100 ms / 25.0 s = 0.40 %" in text


def test_defaults_of_both_programs_are_right() -> None:
    assert seconds(saves.Config().mtbf) == seconds(preemption.Config().mtbf) == 7200
    assert read_traces(preemption.Config().trace)
