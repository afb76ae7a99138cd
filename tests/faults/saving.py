"""A small program for tests: opens a run's directory, loads its newest checkpoint, and makes a few more saves.

    saving.py RUN SOCKET STEPS

Everything that it writes of a step follows from the step's number, so that a reader who knows nothing of pitstop
(`Disk` below) can tell which step some bytes belong to. It connects to the Unix socket, waits for a word, and then says
what it holds to be so: `loaded K` (0: none), `saved K`, `failed K errno`, `ended`; by sendto(2), which no test makes
fail.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from pitstop import checkpoint
from pitstop.files import clear_leftovers, write_json
from pitstop.record import Metrics
from pitstop.rundir import RunDirectory

KEEP = 2
NAME = re.compile(r"step-\d{8}")
CONFIG = {"format": 1, "definition": {"recipe": "saves"}}
SIZES = {"weight": 1500, "momentum": 700, "count": 8}  # bytes; more than one sector, and no whole number of them


def content(step: int, name: str) -> bytes:
    return hashlib.shake_256(f"{name} after {step} steps".encode()).digest(SIZES[name])


def row(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": hashlib.sha256(str(step).encode()).hexdigest()}


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {name: torch.frombuffer(bytearray(content(step, name)), dtype=torch.uint8) for name in SIZES}


class Disk:
    """What lies in a run's directory, read without pitstop. Methods raise AssertionError where it is not right."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def step(self, folder: Path) -> int | None:
        """The step that is there whole, to the last byte; None where anything is missing or not as it was written."""
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            data = (folder / "state.safetensors").read_bytes()
        except (OSError, ValueError):
            return None
        if hashlib.sha256(data).hexdigest() != manifest["files"]["state.safetensors"]["sha256"]:
            return None
        step = int(manifest["step"])
        assert manifest["state"] == row(step), f"{folder} mixes two steps"
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        for name in SIZES:
            first, last = header[name]["data_offsets"]
            assert data[start + first : start + last] == content(step, name), f"{folder}: {name} is of another step"
        lines = self.metrics()[: manifest["metrics_bytes"]].splitlines()
        assert [json.loads(line) for line in lines] == [row(k) for k in range(1, step + 1)], f"{folder}: rows are lost"
        return step

    def metrics(self) -> bytes:
        path = self.run / "metrics.jsonl"
        return path.read_bytes() if path.exists() else b""

    def folders(self) -> dict[str, int | None]:
        """What is in checkpoints/: name -> the step that is there whole; None for what does not call itself one."""
        folder = self.run / "checkpoints"
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return {path.name: self.step(path) if NAME.fullmatch(path.name) else None for path in paths}

    def newest(self) -> int:
        """The newest step that is there whole under its own name; 0: none."""
        names = self.folders()
        good = [step for step in names.values() if step is not None]
        assert all(names[f"step-{step:08d}"] == step for step in good), f"a checkpoint has another's name: {names}"
        return max(good, default=0)

    def json(self, name: str) -> Any:
        """A file that must be whole, or not there: then None."""
        path = self.run / name
        return json.loads(path.read_bytes()) if path.exists() else None


def load(run: RunDirectory, metrics: Metrics) -> int:
    """The step of the newest checkpoint, after the same things in the same order as a session does them."""
    clear_leftovers(run.path / "checkpoints")
    found = checkpoint.newest(run.path / "checkpoints", complain=lambda text: run.event("bad_checkpoint", text=text))
    run.write_status(state="running", step=found.step if found else 0)
    assert metrics.open_at(found.manifest["metrics_bytes"] if found else 0) == 0, "rows are lost"
    return found.step if found else 0


def save(run: RunDirectory, metrics: Metrics, step: int) -> None:
    metrics.write(row(step))
    about = {"metrics_bytes": metrics.flush(), "state": row(step)}
    metrics.sync()
    checkpoint.write(run.path / "checkpoints", step, checkpoint.to_bytes(tensors(step), {}), about, keep=KEEP)
    run.event("save", step=step)


def main(path: str, address: str, steps: int) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        line.recv(1)

        def say(*words: object) -> None:
            line.sendall(" ".join(map(str, words)).encode() + b"\n")

        run = RunDirectory(Path(path))
        metrics = Metrics(run.path / "metrics.jsonl", world=1)
        try:
            run.open(wait_seconds=10)
            if not run.exists():
                write_json(run.path / "config.json", CONFIG)
            loaded = load(run, metrics)
            say("loaded", loaded)
            for step in range(loaded + 1, loaded + steps + 1):
                try:
                    save(run, metrics, step)
                    say("saved", step)
                except OSError as error:
                    say("failed", step, error.errno)
            with contextlib.suppress(OSError):
                run.write_status(state="finished")
        except Exception as error:  # whatever it is, the test must know
            say("ended", type(error).__name__, getattr(error, "errno", None), error)
            os._exit(1)
        say("ended")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
