"""Runs of `tests/tiny.py` that send their rows to a W&B server of ours, and what that should have in the end."""

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from faults.harness import Job, Run
from wandb_server import KEY, StoredRun, WandbServer

SYNC = "import sys; from pitstop.sync import command; sys.exit(command(sys.argv[1:]))"
FLAGS = ("--save_every", "2steps", "--log_every", "1", "--eval_every", "3")
STEP_SECONDS = "0.05"


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


def expected(run: Run) -> list[dict[str, Any]]:
    """What W&B should have: metrics.jsonl, in its order."""
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [
        {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "step", "time")}
        | {"global_step": row["step"], "_timestamp": datetime.fromisoformat(row["time"]).timestamp()}
        for row in rows
    ]


def mirrored(stored: StoredRun) -> list[dict[str, Any]]:
    """The server's rows, after a look at their numbers."""
    assert [row["_step"] for row in stored.rows] == list(range(len(stored.rows))), "out of order, double or missing"
    assert stored.gaps == 0
    own = ("_step", "_runtime", "_wandb")  # the client's
    return [{key: value for key, value in row.items() if key not in own} for row in stored.rows]


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


def rows_at(server: WandbServer, number: int) -> None:
    until = time.monotonic() + 30
    while not server.runs or len(server.run().history) < number:
        assert time.monotonic() < until, "no rows come"
        time.sleep(0.02)
