"""The real W&B client against a server of our own: kills, outages, offline and online attempts, hanging, a notice.

Whatever happens, the server ends with row i of metrics.jsonl as its row i, each once. Rows are counted there.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Job, Run, Warm
from wandb_server import KEY, StoredRun, WandbServer

SYNC = "import sys; from pitstop.sync import command; sys.exit(command(sys.argv[1:]))"
FLAGS = ("--save_every", "2steps", "--log_every", "1", "--eval_every", "3")
STEP_SECONDS = "0.05"
NO_FIGURES = ("kind", "step", "time", "media", "class_accuracy")


class Tracked(Run):
    """A run that sends its rows to W&B."""

    def start(self, *flags: str, ranks: int | None = None, out: Path | None = None, **env: str) -> Job:
        self.attempts += 1
        argv = [self.recipe, "--name", "r", *self.defaults(), *self.flags, *flags]
        env = {"STEP_LOG": str(self.folder / "steps.jsonl"), "STEP_SECONDS": STEP_SECONDS} | self.env | env
        out = out or self.folder / f"out-{self.attempts}.txt"
        return self.warm.start(argv, cwd=self.folder, out=out, ranks=ranks or self.ranks, env=env)

    def sync(self, server: WandbServer) -> Job:
        """`pitstop sync` on this run, to its end."""
        script, self.attempts = self.folder / "sync.py", self.attempts + 1
        script.write_text(SYNC)
        out = self.folder / f"out-{self.attempts}.txt"
        return self.warm.start([script, self.path], cwd=self.folder, out=out, env=server.environment).wait(60)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def tracked(warm: Warm, tmp_path: Path) -> Callable[..., Tracked]:
    return lambda *flags, **env: Tracked(warm, tmp_path / "run", *FLAGS, *flags, **env)


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def expected(run: Run) -> list[dict[str, Any]]:
    """What W&B should have: metrics.jsonl, in its order; the pictures apart."""
    return [
        {f"{row['kind']}/{key}": value for key, value in row.items() if key not in NO_FIGURES}
        | {f"{row['kind']}/class_accuracy/{name}": share for name, share in row.get("class_accuracy", {}).items()}
        | {"global_step": row["step"]}
        for row in rows_of(run)
    ]


def mirrored(stored: StoredRun) -> list[dict[str, Any]]:
    """The server's rows, after a look at their numbers."""
    assert [row["_step"] for row in stored.rows] == list(range(len(stored.rows))), "out of order, double or missing"
    assert stored.gaps == 0
    return [
        {key: value for key, value in row.items() if not key.startswith("_") and not isinstance(value, dict)}
        for row in stored.rows
    ]


def shown(stored: StoredRun) -> dict[int, dict[str, list[tuple[bytes, str]]]]:
    """Row -> name -> (file, caption) of its pictures, as the server has them."""
    found: dict[int, dict[str, list[tuple[bytes, str]]]] = {}
    for number, row in enumerate(stored.rows):
        for name, value in row.items():
            if isinstance(value, dict):
                assert value["_type"] == "images/separated", value
                captions = value.get("captions") or [""] * value["count"]
                files = [stored.files[file] for file in value["filenames"]]
                found.setdefault(number, {})[name] = list(zip(files, captions, strict=True))
    return found


def to_show(run: Run) -> dict[int, dict[str, list[tuple[bytes, str]]]]:
    """The same, as the rows of metrics.jsonl and the files of the run say it."""
    return {
        number: {
            f"{row['kind']}/{name}": [((run.path / one["path"]).read_bytes(), one.get("caption", "")) for one in shots]
            for name, shots in row["media"].items()
        }
        for number, row in enumerate(rows_of(run))
        if "media" in row
    }


def end_of(job: Job, seconds: float) -> None:
    """Kill -9 after so long, if it is not over by then."""
    if not job.over.wait(seconds):
        job.kill()


@pytest.mark.slow
def test_ten_kills_an_outage_and_offline_attempts(tracked: Callable[..., Tracked], server: WandbServer) -> None:
    """Online, the server away in the middle, answering 500, dropping connections; offline: mixed, killed at random.

    An attempt is killed when its client has sent something, however slow this machine is."""
    run, chance = tracked("--epochs", "45"), random.Random(7)
    grown = []
    for fault in ("", "500", "offline", "", "reset", "down", "", "offline", "", ""):
        had = len(server.run().history) if server.runs else 0
        offline = {"WANDB_MODE": "offline"} if fault == "offline" else {}
        job = run.start(STEP_SECONDS="0.2", **server.environment | offline)
        if not offline:
            rows_at(server, had + 1 + chance.randrange(8))
        if fault == "down":
            server.down()
        elif not offline:
            server.fault = fault  # it begins well and breaks
        time.sleep(0.1 + 0.7 * chance.random())
        job.kill()
        assert job.codes == [-signal.SIGKILL], job.text
        if fault == "down":
            server.up()
        server.fault = ""
        grown.append(len(server.run().history) - had)
    assert sum(map(bool, grown)) == 8, f"rows that came in each attempt: {grown}"
    run.finish(STEP_SECONDS="0", **server.environment)
    assert mirrored(server.run()) == expected(run)
    assert server.run().ends == [{"complete": True, "exitcode": 0}]
    again = run.sync(server)
    assert again.codes == [0], again.text
    assert " 0 of them new" in again.text
    assert mirrored(server.run()) == expected(run)


@pytest.mark.slow
def test_pictures_and_class_accuracies_belong_to_their_rows(warm: Warm, tmp_path: Path, server: WandbServer) -> None:
    """Killed before the first row; the next attempt sends the samples that the first has written. And the last row has
    the pictures of the end, each the very file of the run."""
    flags = ("--save_every", "2steps", "--log_every", "4", "--log_gradients", "True", "--price", "2")
    run = Tracked(warm, tmp_path / "run", *flags, PICTURES="1", **server.environment)
    run.killed("step:3", SAVES_WAIT="1")
    run.finish()
    stored = server.run()
    assert mirrored(stored) == expected(run)
    assert shown(stored) == to_show(run)
    first, last = min(to_show(run)), max(to_show(run))
    assert (first, last) == (0, len(stored.rows) - 1)
    assert {name: len(shots) for name, shots in shown(stored)[first].items()} == {"train/augmented": 16}
    names = {"eval/predictions"} | ({"eval/confusion_matrix"} if find_spec("matplotlib") else set())
    assert shown(stored)[last].keys() == names
    assert any(", taken for " in caption for _, caption in shown(stored)[last]["eval/predictions"])
    assert {"train/cost", "train/goodput", "train/grad_norm"} < stored.rows[0].keys()
    assert "eval/class_accuracy/7" in stored.rows[last]


@pytest.mark.slow
def test_offline_killed_ten_times_then_synced(
    tracked: Callable[..., Tracked], server: WandbServer, tmp_path: Path
) -> None:
    run, chance = tracked("--epochs", "12", WANDB_MODE="offline"), random.Random(8)
    for _ in range(10):
        end_of(run.start(), 0.3 + 0.5 * chance.random())
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


def plain_sync(run: Run, tmp_path: Path) -> None:
    """W&B's own `wandb sync` on a copy of the run, to another server: all rows, also if it is called twice."""
    with WandbServer() as other:
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-r", run.path / "wandb", copy], check=True)
        command = [sys.executable, "-m", "wandb", "sync", copy]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "WANDB_BASE_URL": other.url, "WANDB_API_KEY": KEY}
        for _ in range(2):
            subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60, check=True)
        assert mirrored(other.run()) == expected(run)
        assert other.run().ends == [{"complete": True, "exitcode": 0}]


@pytest.mark.slow
def test_hanging_from_the_first_call(tracked: Callable[..., Tracked], server: WandbServer) -> None:
    """First step within 1 s of a run without a tracker, end at most 30 s later. Seen once without, once with."""
    took = {}
    server.fault = "hang"
    run = tracked("--epochs", "4")
    for tracker in ("none", "wandb"):
        run.path, log = run.folder / "runs" / tracker, run.folder / f"{tracker}.jsonl"
        begun = time.monotonic()
        job = run.start("--tracker", tracker, "--runs_dir", f"runs/{tracker}", STEP_LOG=str(log), **server.environment)
        while not log.exists() or not log.read_text():
            assert time.monotonic() - begun < 60
            time.sleep(0.005)
        first = time.monotonic() - begun
        job.wait()
        took[tracker] = (first, time.monotonic() - begun)
        assert job.codes == [0], job.text
    assert took["wandb"][0] < took["none"][0] + 1.0, took
    assert took["wandb"][1] < took["none"][1] + 30.0, took
    assert server.requests > 0
    assert "W&B cannot be used" in job.text
    assert "pitstop sync runs/wandb/r" in job.text


@pytest.mark.slow
def test_a_notice_writes_checkpoint_and_status_before_a_server_that_hangs(
    tracked: Callable[..., Tracked], server: WandbServer, tmp_path: Path
) -> None:
    """And with one that answers: preempted, with a non-zero exit code. And nobody's keys were sent."""
    keys = {"AWS_ACCESS_KEY_ID": "CANARY-id", "AWS_SECRET_ACCESS_KEY": "CANARY-secret"}
    store = {"PITSTOP_STORE": f"file://{tmp_path}/CANARY-store", "PITSTOP_GRACE_SECONDS": "6"}
    run = tracked("--epochs", "90", **server.environment | keys | store)
    job = run.start()
    rows_at(server, 3)
    server.fault = "hang"
    job.signal(signal.SIGTERM)
    asked = time.monotonic()
    while run.status()["state"] != "stopped":
        assert time.monotonic() - asked < 2
        time.sleep(0.02)
    assert job.wait().codes == [75]
    assert time.monotonic() - asked < 6
    assert "W&B has not taken everything in time" in job.text
    server.fault = ""
    job = run.start()
    rows_at(server, len(server.run().history) + 3)
    job.signal(signal.SIGTERM)
    assert job.wait().codes == [75]
    assert server.run().ends == [{"preempting": True}, {"complete": True, "exitcode": 75}]
    assert mirrored(server.run()) == expected(run)
    sent = b"".join(server.received)
    assert b"CANARY" not in sent
    assert KEY.encode() not in sent


def rows_at(server: WandbServer, number: int) -> None:
    until = time.monotonic() + 30
    while not server.runs or len(server.run().history) < number:
        assert time.monotonic() < until, "no rows come"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_client_without_an_account_or_with_a_wrong_key_costs_a_line(tracked: Callable[..., Tracked]) -> None:
    env = {"WANDB_MODE": "online", "HOME": "/nonexistent", "WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": "/dev/null"}
    run = tracked("--epochs", "2", **env)
    assert "W&B cannot be used" in run.finish().text
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 1, "for a plain `wandb sync`"
