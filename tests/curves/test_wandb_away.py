"""W&B that is away: down, failing, hanging, or closed to us. Training ends with the same bytes and hardly later; one
line says so; an offline log is left; and `pitstop sync` then brings every row."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Job, Run
from tracked import FLAGS, Tracked, expected, mirrored, plain_sync, rows_at
from wandb_server import WandbServer

STEPS = 17  # of two epochs
NOBODY = {"HOME": "/nonexistent", "NETRC": "/dev/null"}  # no key lies about
AWAY = {  # the server's fault, what the environment says, seconds from the first step until it is offline
    "answers 500": ("500", {}, 20),
    "drops connections": ("reset", {}, 20),
    "nothing listens": ("down", {}, 20),
    "hangs": ("hang", {}, 20),
    "wrong key": ("", {"WANDB_API_KEY": "f" * 40}, 10),
    "logged out": ("logged out", {}, 10),
    "no key": ("", {"WANDB_API_KEY": ""}, 10),
}


def about(job: Job) -> list[str]:
    return [line for line in job.text.splitlines() if "W&B" in line]


def timed(run: Tracked, log: Path, *flags: str, **env: str) -> tuple[Job, dict[str, float]]:
    """An attempt to its end; seconds until its first and last step, until it speaks of W&B, and in all."""
    job = run.start(*flags, STEP_LOG=str(log), **env)
    begun, took = time.monotonic(), {}
    while not job.over.wait(0.005):
        now = time.monotonic() - begun
        steps = log.read_bytes().count(b"\n") if log.exists() else 0
        for name, number in (("first step", 1), ("last step", STEPS)):
            if steps >= number:
                took.setdefault(name, now)
        if about(job):
            took.setdefault("said", now)
        assert now < 90, job.text
    assert job.codes == [0], job.text
    return job, took | {"end": time.monotonic() - begun}


@pytest.mark.slow
@pytest.mark.parametrize("away", AWAY)
def test_away_from_the_first_call_on(
    tracked: Callable[..., Tracked], server: WandbServer, tmp_path: Path, away: str
) -> None:
    fault, env, seconds = AWAY[away]
    env = server.environment | NOBODY | env
    if fault == "down":
        server.down()
    server.fault = fault
    run = tracked("--epochs", "2")
    _, without = timed(run, tmp_path / "without.jsonl", "--tracker", "none", "--runs_dir", "without")
    job, took = timed(run, tmp_path / "with.jsonl", **env)
    most = 1 if fault == "hang" else 3  # what hangs is the worst; the others shall not fail on a machine that is busy
    assert took["first step"] < without["first step"] + most, (took, without)
    assert took["last step"] < without["last step"] + 5, (took, without)
    assert took["end"] < without["end"] + 30, (took, without)
    assert took["said"] < took["first step"] + seconds, took
    (line,) = about(job)
    assert "W&B cannot be used" in line
    assert line.endswith("to upload the rest: pitstop sync runs/r")
    final = run.final()
    assert not server.runs
    if fault == "down":
        server.up()
    server.fault = ""
    if fault == "hang":  # W&B's own, which takes seconds: what was left is the same in all these cases
        plain_sync(run, tmp_path)
    for new in (len(expected(run)), 0):
        job = run.sync(server)
        assert (job.codes, f"{new} of them new" in job.text) == ([0], True), job.text
        assert mirrored(server.run()) == expected(run)
    run.path = run.folder / "without" / "r"
    assert final == run.final()


@pytest.mark.slow
def test_away_in_the_middle(tracked: Callable[..., Tracked], clean: Callable[..., Run], server: WandbServer) -> None:
    """Back before the end, W&B has everything. Not back, the end waits half a minute at most; then `pitstop sync`."""
    run = tracked("--epochs", "12", **server.environment)
    job = run.start(STEP_SECONDS="0.15")
    rows_at(server, 3)
    server.down()
    time.sleep(3)
    assert not job.over.is_set()
    server.up()
    server.fault = ""
    rows_at(server, len(server.run().history) + 3)
    server.down()
    had = len(server.run().history)
    while run.status()["state"] != "finished":
        assert not job.over.wait(0.02), job.text
    ended = time.monotonic()
    assert job.wait().codes == [0], job.text
    assert time.monotonic() < ended + 27
    page, late = about(job)
    assert page.startswith(f"W&B: {server.url}/")
    assert late == "W&B has not taken everything in time; to upload the rest: pitstop sync runs/r"
    assert run.final() == clean(*FLAGS, "--epochs", "12").final()
    server.up()
    server.fault = ""
    new = len(expected(run)) - had
    assert new > 0
    assert f" {new} of them new" in run.sync(server).text
    assert mirrored(server.run()) == expected(run)


def killed(parent: int, word: bytes) -> None:
    """Kill -9 of the process below `parent` whose command has this word in it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            owner = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            parents[int(folder.name)] = owner, (folder / "cmdline").read_bytes()
    (found,) = [
        pid for pid, (owner, command) in parents.items() if word in command and parent in (owner, parents[owner][0])
    ]
    os.kill(found, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("word", [b"pitstop.curves", b"wandb-core"])
def test_its_process_is_killed(tracked: Callable[..., Tracked], server: WandbServer, word: bytes) -> None:
    """By who needs memory, say: our recorder, or the client's own service. It costs a line."""
    run = tracked("--epochs", "6", **server.environment)
    job = run.start(STEP_SECONDS="0.15")
    rows_at(server, 3)
    killed(job.pids[0], word)
    assert job.wait().codes == [0], job.text
    _, line = about(job)
    assert line.endswith("to upload the rest: pitstop sync runs/r")
    had = len(server.run().history)
    assert had < len(expected(run))
    assert f" {len(expected(run)) - had} of them new" in run.sync(server).text
    assert mirrored(server.run()) == expected(run)


@pytest.mark.slow
def test_offline_killed_ten_times_then_synced(
    tracked: Callable[..., Tracked], server: WandbServer, tmp_path: Path
) -> None:
    run, chance = tracked("--epochs", "12", WANDB_MODE="offline"), random.Random(8)
    for _ in range(10):
        job = run.start()
        if not job.over.wait(0.3 + 0.5 * chance.random()):
            job.kill()
    job = run.finish()
    assert f"to upload: pitstop sync {run.path.relative_to(run.folder)}" in job.text
    assert server.requests == 0
    plain_sync(run, tmp_path)
    for new in (len(expected(run)), 0):
        job = run.sync(server)
        assert (job.codes, f"{new} of them new" in job.text) == ([0], True), job.text
        assert mirrored(server.run()) == expected(run)
    assert server.run().summary["result/accuracy"] == run.status()["result"]["accuracy"]
    assert not list(run.path.glob("wandb/**/*.wandb")), "what `wandb sync` would send once more"
