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


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def expected(run: Run) -> list[dict[str, Any]]:
    """What W&B should have: metrics.jsonl, in its order; the pictures apart."""
    return [
        {f"{row['kind']}/{key}": value for key, value in row.items() if key not in NO_FIGURES}
        | {f"{row['kind']}/class_accuracy/{name}": share for name, share in row.get("class_accuracy", {}).items()}
        | {"global_step": row["step"], "_timestamp": datetime.fromisoformat(row["time"]).timestamp()}
        for row in rows_of(run)
    ]


def mirrored(stored: StoredRun) -> list[dict[str, Any]]:
    """The server's rows, after a look at their numbers."""
    assert [row["_step"] for row in stored.rows] == list(range(len(stored.rows))), "out of order, double or missing"
    assert stored.gaps == 0
    own = ("_step", "_runtime", "_wandb")  # the client's
    return [
        {key: value for key, value in row.items() if key not in own and not isinstance(value, dict)}
        for row in stored.rows
    ]


def shown(stored: StoredRun) -> dict[int, dict[str, list[tuple[bytes, str]]]]:
    """Row -> name -> (file, caption) of its pictures, as the server has them."""
    found: dict[int, dict[str, list[tuple[bytes, str]]]] = {}
    for number, row in enumerate(stored.rows):
        for name, value in row.items():
            if isinstance(value, dict) and name != "_wandb":
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
