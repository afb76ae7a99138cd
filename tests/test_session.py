"""A run and its directory: the same command, another command, the end; what is written down, and how it is started."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import TINY, Run, assert_same, snapshot

SAVES = ("--save_every", "5steps")


def with_code(run: Run, old: str, new: str) -> None:
    """Another version of the recipe, under the same name, in the run's own folder."""
    text = TINY.read_text()
    assert old in text
    run.recipe = run.folder / "tiny.py"
    run.recipe.write_text(text.replace(old, new))


def refused(run: Run, *flags: str, **env: str) -> str:
    """What an attempt says that must be refused, and must not have changed anything on disk but the lock; and, where
    the run is not finished, status.json, which must no longer call for the same command."""
    finished = run.status()["state"] == "finished"
    told = ("lock",) if finished else ("lock", "status.json")
    before = {name: file for name, file in snapshot(run.path).items() if name not in told}
    status = run.status()
    job = run.go(*flags, **env)
    after = {name: file for name, file in snapshot(run.path).items() if name not in told}
    assert job.codes == [2] * run.ranks, job.text
    if not finished:
        assert run.status() == status | {
            "state": "failed",
            "restart": "person",
            "reason": run.status()["reason"],
        }
        assert str(run.status()["reason"]) in job.text
    assert "Traceback" not in job.text
    return (
        job.text if after == before else f"CHANGED {sorted(k for k in after if after[k] != before.get(k))} {job.text}"
    )


def check_refusal(text: str, *differences: str) -> None:
    assert "CHANGED" not in text, text
    for line in (*differences, "--accept_change", "--name OTHER", "pitstop archive"):
        assert text.count(line) == 1, (line, text)


def test_the_same_flags_find_the_same_run(tiny: Callable[..., Run]) -> None:
    """Without --name the directory is named after what differs from the defaults, in any order."""
    run = tiny()
    argv = [TINY, "--tracker", "none", "--precision", "fp32"]
    log = {"STEP_LOG": str(run.folder / "steps.jsonl")}

    def go(*flags: str) -> set[str]:
        job = run.warm.start([*argv, *flags], cwd=run.folder, out=run.folder / "out.txt", env=log).wait()
        assert job.codes == [0], job.text
        return {path.name for path in (run.folder / "runs").iterdir()}

    first = go("--epochs", "0.3", "--seed", "3")
    assert len(first) == 1
    assert re.fullmatch(r"tiny-[0-9a-f]{8}", *first)
    steps = len(run.step_log())
    assert go("--seed=3", "--epochs=0.30", "--keep", "2", "--model", "test_resnet") == first
    assert len(run.step_log()) == steps, "it was trained again"
    assert len(go("--epochs", "0.3", "--seed", "4")) == 2


def test_other_flags_under_the_same_name(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    run.killed("step:13")
    text = refused(run, "--peak_lr", "0.3", "--shift", "2", "--keep", "7")
    check_refusal(text, "peak_lr: 0.1 -> 0.3", "shift: 1 -> 2")
    assert "keep" not in text
    run.finish("--keep", "7")
    assert_same(run, clean())


def test_other_flags_for_a_finished_run(tiny: Callable[..., Run]) -> None:
    run = tiny("--epochs", "0.5")
    run.finish()
    check_refusal(refused(run, "--peak_lr", "0.3"), "peak_lr: 0.1 -> 0.3")


def test_other_code(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Of the recipe; another comment, docstring or layout is the same code."""
    run = tiny(*SAVES)
    run.killed("step:13")
    with_code(run, "average.update()", "average.update() or average.update()")
    text = refused(run)
    check_refusal(text)
    assert re.search(r"code: [0-9a-f]{16} -> [0-9a-f]{16}", text)
    with_code(run, "average.update()", "(average.update(  # a comment\n            ))")
    run.recipe.write_text(
        run.recipe.read_text().replace('"""Not a recipe that anyone needs."""', '"""Another text."""')
    )
    run.finish()
    assert_same(run, clean())


def test_other_data(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    run.killed("step:13")
    before = snapshot(run.path)
    job = run.go(CHANGE_DATA="0123abc")
    assert job.codes == [2], job.text
    check_refusal(job.text, "data_set.sha256: ")
    after = snapshot(run.path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"lock", "events.jsonl", "train.log", "status.json"}, "it is known only when the run is open"
    assert (run.status()["state"], run.status()["restart"]) == ("failed", "person")
    run.finish()
    assert_same(run, clean())


def test_a_change_that_is_accepted(tiny: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    run.killed("step:13")
    run.finish("--peak_lr", "0.3", "--accept_change")
    assert [event["changes"] for event in run.events("accepted_change")] == [["peak_lr: 0.1 -> 0.3"]]
    assert [event["step"] for event in run.events("restore")] == [10]
    assert json.loads((run.path / "config.json").read_text())["definition"]["peak_lr"] == 0.3
    check_refusal(refused(run), "peak_lr: 0.3 -> 0.1")


def test_a_refused_change_on_two_ranks_is_said_once(tiny: Callable[..., Run]) -> None:
    run = tiny(*SAVES, ranks=2)
    run.killed("step:13")
    job = run.go("--peak_lr", "0.3")
    assert 2 in job.codes, job.text
    check_refusal(job.text, "peak_lr: 0.1 -> 0.3")


def test_a_finished_run(tiny: Callable[..., Run]) -> None:
    """Started again it prints its result: no model is made, no step computed, nothing written."""
    run = tiny("--epochs", "0.5")
    result = next(line for line in run.finish().text.splitlines() if line.startswith("r is finished"))
    steps = len(run.step_log())
    before = {name: file for name, file in snapshot(run.path).items() if name != "lock"}
    job = run.go(KILL_AT="prepared")
    assert job.codes == [0], job.text
    assert result in job.text
    assert "accuracy" in result
    assert len(run.step_log()) == steps
    assert {name: file for name, file in snapshot(run.path).items() if name != "lock"} == before
    assert run.go(ranks=2).codes == [0, 0]


def test_a_defect_of_the_recipe(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    job = run.go(RAISE_AT="12")
    assert job.codes == [1], job.text
    assert "RuntimeError: a defect of the recipe's" in job.text
    status = run.status()
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: a defect of the recipe's")
    assert run.finish(LOCK_WAIT="0").codes == [0], "the lock is still held"
    assert_same(run, clean())


def test_status(tiny: Callable[..., Run]) -> None:
    """The contract with launchers."""
    run = tiny(STEP_SECONDS="0.05")
    job = run.start()
    while len(run.step_log()) < 3:
        assert not job.over.wait(0.01), job.text
    status = run.status()
    expected = {"state": "running", "restart": "now", "reason": "", "step": 0, "total_steps": 26, "attempt": 1}
    assert expected.items() <= status.items()
    assert status["pid"] == job.pids[0]
    assert status["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", status["heartbeat"])
    job.wait()
    status = run.status()
    expected = {"state": "finished", "restart": "never", "step": 26, "total_steps": 26, "attempt": 1}
    assert expected.items() <= status.items()
    assert {"loss", "accuracy"} <= status["result"].keys()
    assert [row for row in run.rows() if row["kind"] == "eval"][-1].items() >= status["result"].items()


def test_dry_run_leaves_nothing(tiny: Callable[..., Run]) -> None:
    run = tiny()
    job = run.go("--dry_run")
    assert job.codes == [0], job.text
    assert "nothing was started" in job.text
    assert not (run.folder / "runs").exists()
    run.killed("step:3")
    before = snapshot(run.path)
    assert run.go("--dry_run").codes == [0]
    assert snapshot(run.path) == before


def test_processes_that_do_not_know_of_each_other(tiny: Callable[..., Run]) -> None:
    """Accelerate made one process where the launcher made two: it happens on a CPU."""
    run = tiny()
    job = run.go(WORLD_SIZE="2", RANK="0")
    assert job.codes == [2], job.text
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in job.text
    assert not (run.folder / "runs").exists()


def descendants(pid: int) -> list[int]:
    """By the process table; the process itself first."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def free_port() -> int:
    """Port 0 would do for torch 2.14, but makes the ranks of torch 2.6 wait for each other in vain."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_launch(ranks: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The real launcher: the whole tree is killed in the middle, the same command (or its ranks alone) finishes."""
    run = tiny(*SAVES, ranks=ranks)
    several = ["--multi_gpu", "--num_processes", str(ranks), "--main_process_port", str(free_port())]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    options = several if ranks > 1 else ["--num_processes", "1", "--num_machines", "1"]
    flags = ["--name", "r", "--tracker", "none", "--precision", "fp32", *SAVES]
    env = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "STEP_LOG": str(run.folder / "steps.jsonl"),
        "LOCAL_WORLD_SIZE": str(os.cpu_count()),  # one thread each, as the clean run
    }

    def start(**more: str) -> subprocess.Popen[bytes]:
        with open(run.folder / "out.txt", "ab") as out:
            command = [*launcher, *options, str(TINY), *flags]
            return subprocess.Popen(command, cwd=run.folder, env=env | more, stdout=out, stderr=out)

    process = start(STEP_SECONDS="0.1", SAVES_WAIT="1")
    deadline = time.monotonic() + 90
    while not [row for row in run.step_log() if row["step"] == 7]:
        assert process.poll() is None, (run.folder / "out.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    tree = descendants(process.pid)
    assert len(tree) > ranks
    for pid in tree:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert run.status()["state"] == "running"
    if ranks == 1:
        assert start().wait(120) == 0, (run.folder / "out.txt").read_text()
    else:
        run.finish()
    assert [event["step"] for event in run.events("restore")] == [5]
    assert_same(run, clean(ranks=ranks))
