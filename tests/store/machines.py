"""A machine with a run on its disk, as small as one can be; and what is really in the bucket, read without pitstop.

As a program (`python machines.py FOLDER URL BYTES TTL`) it commits checkpoint after checkpoint until it is killed.
"""

import hashlib
import itertools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3 import S3

from pitstop.files import write_atomic
from pitstop.store import Bucket, Lease, Mirror, bring_back

PREFIX = "runs/r"


def contents(step: int, size: int) -> bytes:
    return random.Random(step).randbytes(size)


def verify(path: Path) -> int:
    """As checkpoint.verify does, of the checkpoints that `Machine.commit` writes."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    if hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest() != manifest["sha256"]:
        raise ValueError("state.safetensors is not what was written")
    if path.name != f"step-{manifest['step']:08d}":
        raise ValueError("it is another's")
    return int(manifest["step"])


class Machine:
    """`begin` is what a session does at its start."""

    def __init__(self, folder: Path, url: str) -> None:
        self.run, self.url = folder / "r", url
        self.said: list[str] = []
        self.step = 0
        self.attempt = 0

    def begin(self, *, ttl: float = 60.0, wait: float = 9.0, timeout: float = 5.0, failing: float = 60.0) -> "Machine":
        (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.bucket = Bucket.open(self.url, "r", timeout_seconds=timeout)
        self.lease = Lease(self.bucket, self.run, say=self.said.append, ttl_seconds=ttl)
        self.lease.acquire(wait)
        try:
            self.brought = bring_back(self.bucket, self.run, verify=verify, say=self.said.append)
        except BaseException:
            self.lease.release()
            raise
        self.step = max((int(path.name[5:]) for path in self.checkpoints()), default=0)
        self.attempt = sum('"attempt"' in line for line in self.lines("events.jsonl")) + 1
        if not (self.run / "config.json").exists():
            about = {"wandb_id": f"{random.getrandbits(32):08x}", "definition": {"seed": 0}, "begun": "today"}
            write_atomic(self.run / "config.json", json.dumps(about))
        self.append("events.jsonl", {"event": "attempt", "number": self.attempt, "id": random.getrandbits(64)})
        self.status("running")
        self.mirror = Mirror(
            self.bucket,
            self.run,
            self.lease,
            attempt=self.attempt,
            keep=3,
            say=self.said.append,
            failing_seconds=failing,
        )
        self.mirror.start()
        return self

    def checkpoints(self) -> list[Path]:
        return sorted((self.run / "checkpoints").glob("step-*"))

    def lines(self, name: str) -> list[str]:
        path = self.run / name
        return path.read_text().splitlines() if path.exists() else []

    def append(self, name: str, row: dict[str, Any]) -> None:
        with open(self.run / name, "a") as file:
            file.write(json.dumps(row) + "\n")

    def status(self, state: str) -> None:
        write_atomic(self.run / "status.json", json.dumps({"state": state, "step": self.step}))

    def commit(self, step: int, size: int = 1000, *, told: bool = True) -> None:
        """A checkpoint on disk, pruned to the newest 3, as checkpoint.write does; and the mirror is told."""
        for number in range(self.step, step):
            self.append("metrics.jsonl", {"step": number + 1})
        self.step = step
        self.append("events.jsonl", {"event": "save", "step": step, "id": random.getrandbits(64)})
        state = contents(step, size)
        covered = (self.run / "metrics.jsonl").stat().st_size
        manifest = {"step": step, "metrics_bytes": covered, "sha256": hashlib.sha256(state).hexdigest()}
        final = self.run / "checkpoints" / f"step-{step:08d}"
        hidden = final.with_name(f".tmp-{final.name}")
        hidden.mkdir()
        (hidden / "state.safetensors").write_bytes(state)
        (hidden / "manifest.json").write_text(json.dumps(manifest))
        hidden.rename(final)
        for path in self.checkpoints()[:-3]:
            shutil.rmtree(path)
        if told:
            self.mirror.committed(step)

    def finished(self) -> None:
        (self.run / "final").mkdir()
        (self.run / "final" / "model.safetensors").write_bytes(contents(0, 5000))
        (self.run / "final" / "model.json").write_text("{}")
        self.status("finished")

    def dies(self) -> None:
        """As a kill would end it, as far as others see: no more requests, and the lease stays behind."""
        self.mirror._abandoned.set()
        self.mirror._finishing.set()
        with self.mirror._change:
            self.mirror._change.notify()
        self.mirror.join()
        self.lease._renew = lambda released=False: None  # type: ignore[method-assign]
        self.lease.release()


def look(s3: S3, bucket: str) -> list[int]:
    """The steps that `latest` names, the newest first, after everything that it names was found whole."""
    while True:
        data = s3.get(bucket, f"{PREFIX}/latest")
        if not data:  # none, or moto is just writing it anew: S3 itself gives the old or the new
            return []
        try:
            return _whole(s3, bucket, json.loads(data))
        except (AssertionError, json.JSONDecodeError):
            if s3.get(bucket, f"{PREFIX}/latest") == data:  # else what it named may have been pruned meanwhile
                raise


def _whole(s3: S3, bucket: str, latest: dict[str, Any]) -> list[int]:
    steps = []
    for stored in latest["checkpoints"]:
        manifest = json.loads(s3.get(bucket, f"{PREFIX}/{stored['path']}/manifest.json") or b"")
        state = s3.get(bucket, f"{PREFIX}/{stored['path']}/state.safetensors")
        assert state is not None
        assert hashlib.sha256(state).hexdigest() == manifest["sha256"]
        attempt = stored["path"].split("/checkpoints/")[0]
        metrics = s3.get(bucket, f"{PREFIX}/{attempt}/metrics.jsonl") or b""
        rows = [json.loads(line)["step"] for line in metrics[: manifest["metrics_bytes"]].splitlines()]
        assert rows == list(range(1, manifest["step"] + 1))
        assert stored["step"] == manifest["step"]
        steps.append(manifest["step"])
    for result in latest["results"].values():
        for name, about in result["files"].items():
            data = s3.get(bucket, f"{PREFIX}/{result['path']}/{name}")
            assert data is not None
            assert hashlib.sha256(data).hexdigest() == about["sha256"]
    return steps


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits until it is true; fails if it does not become so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


if __name__ == "__main__":
    machine = Machine(Path(sys.argv[1]), sys.argv[2]).begin(ttl=float(sys.argv[4]))
    print("begun", machine.step, flush=True)
    for step in itertools.count(machine.step + 1):
        machine.commit(step, int(sys.argv[3]))
        print("committed", step, flush=True)
        machine.mirror._done.wait(0.02)
