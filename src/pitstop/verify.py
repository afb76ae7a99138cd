"""`pitstop verify RUN`: computes a stretch of a run once more, from one checkpoint to the next, and compares hashes."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pitstop.clocks import WALL_CLOCK_FIELDS
from pitstop.errors import FAILED, FINISHED, UserError
from pitstop.files import canonical_json, checkpoint_steps, read_json, read_lines, sha256
from pitstop.launcher import OUTCOME
from pitstop.rundir import RunDirectory
from pitstop.runs import RunFlags, flags_of
from pitstop.supervise.processes import descendants, send
from pitstop.supervise.program import build

NOT_REPLAYED = {  # flags that say where and how long, not what
    *("name", "runs_dir", "accept_change", "dry_run", "save_every", "mtbf", "keep", "store", "cloud", "max_hours"),
    *("price", "currency", "budget", "tracker", "wandb_project", "wandb_entity", "wandb_group"),
    *("wandb_tags", "wandb_artifact", "estimate", "finish_by", "report"),
}
LOOK_SECONDS = 0.2
END_SECONDS = 60.0


class Verify(RunFlags):
    """Computes a run again from one kept checkpoint to the next, beside it, and compares SHA-256 of all that comes
    out: exit code 0 says that the run is exact. The run itself is not touched."""

    from_step: int = Field(-1, ge=-1)
    """of the checkpoint to begin at; 0: the very beginning; -1: the last checkpoint but one"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop verify <argv>`."""
    flags = flags_of(Verify, "verify", argv)
    return verify(flags.path, None if flags.from_step < 0 else flags.from_step)


@dataclass(frozen=True)
class Kept:
    """A checkpoint on the disk, as its manifest has it."""

    step: int
    path: Path
    manifest: dict[str, Any]

    @property
    def state_sha256(self) -> str:
        return str(self.manifest["files"]["state.safetensors"]["sha256"])


def kept_checkpoints(run: Path) -> list[Kept]:
    """The oldest first. Raises UserError if one of them is damaged."""
    found = []
    for _, path in reversed(checkpoint_steps(run / "checkpoints")):
        try:
            manifest = read_json(path / "manifest.json")
            kept = Kept(int(manifest["step"]), path, manifest)
            good = sha256((path / "state.safetensors").read_bytes()) == kept.state_sha256
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): start the run again, it sets it aside") from error
        if not good:
            raise UserError(f"{path} is damaged: its SHA-256 is another. Start the run again, it sets it aside")
        found.append(kept)
    return found


def history(run: RunDirectory) -> tuple[list[str], str]:
    """(a line for each attempt that trained, from when on the run is no longer exact and why, or nothing)."""
    lines, since = [], ""
    for event in run.events():
        number = event.get("attempt")
        if event.get("event") == "start":
            shape = event.get("shape", {})
            threads = f", {shape['threads']} threads" if shape.get("threads") else ""
            device = f"{shape.get('processes')} x {shape.get('device')}{threads}, {shape.get('precision')}"
            lines.append(f"  attempt {number} from step {event.get('step')}: {device}")
        if event.get("event") in ("shape_changed", "accepted_change") and not since:
            since = f"attempt {number} ({'; '.join(event.get('changes', []))})"
    return lines, since


def stretch(kept: list[Kept], from_step: int | None) -> tuple[Kept | None, Kept]:
    """Where the replay begins (None: at step 0) and the checkpoint at which it must arrive.

    Raises:
        UserError: there is no such stretch.
    """
    steps = [one.step for one in kept]
    if not kept:
        raise UserError("there is no checkpoint to compare with yet")
    if from_step is None:
        return (kept[-2], kept[-1]) if len(kept) > 1 else (None, kept[-1])
    if from_step == 0:
        return None, kept[0]
    if from_step not in steps[:-1]:
        choices = ", ".join(map(str, [0, *steps[:-1]]))
        raise UserError(f"--from_step {from_step}: one of {choices} was expected: there are checkpoints to begin at")
    index = steps.index(from_step)
    return kept[index], kept[index + 1]


@contextmanager
def _copy(run: RunDirectory, begin: Kept | None) -> Iterator[Path]:
    """A run directory beside the run, at the state of one checkpoint; links, where the disk has them, no copies."""
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=run.path.parent) as folder:
        copy = Path(folder) / run.path.name
        (copy / "checkpoints").mkdir(parents=True)
        shutil.copy(run.path / "config.json", copy)
        if begin:
            target = copy / "checkpoints" / begin.path.name
            target.mkdir()
            for file in begin.path.iterdir():
                _link(file, target / file.name)
            with open(run.path / "metrics.jsonl", "rb") as rows:
                (copy / "metrics.jsonl").write_bytes(rows.read(begin.manifest["metrics_bytes"]))
        yield copy


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy(source, target)


def _command(run: RunDirectory, copy: Path, end: Kept) -> tuple[tuple[str, ...], dict[str, str], str]:
    """(words, environment, folder) that compute the run up to `end`: with its own flags, on as many processes."""
    about = run.config()
    program, folder = about.get("program"), about.get("folder")
    if not isinstance(program, str) or not Path(program).is_file():
        raise UserError(f"the recipe {program} is not here: verify where the run was trained")
    values = {name: value for name, value in about["config"].items() if name not in NOT_REPLAYED}
    values |= {"name": run.path.name, "runs_dir": copy.parent, "save_every": f"{end.step}steps"}
    values |= {"tracker": "none", "report": False, "cloud": "none"}
    words = [f"--{name}={value if isinstance(value, str) else _text(value)}" for name, value in values.items()]
    processes = str(end.manifest["shape"]["processes"])
    env = {name: value for name, value in os.environ.items() if name not in ("PITSTOP_STORE", OUTCOME)}
    command = build(program, words, processes=processes, config_file="", grace_seconds=END_SECONDS, env=env)
    return command.argv, command.env, folder if isinstance(folder, str) and Path(folder).is_dir() else os.getcwd()


def _text(value: object) -> str:
    return str(value) if isinstance(value, Path) else json.dumps(value)


def _replay(run: RunDirectory, copy: Path, end: Kept, finishes: bool) -> None:
    """Computes in the copy until the checkpoint of `end` is there, or the run is finished.

    Raises:
        UserError: the recipe ended before.
    """
    words, env, folder = _command(run, copy, end)
    target = copy / "checkpoints" / end.path.name
    with open(copy / "output.txt", "wb") as output:
        process = subprocess.Popen(words, env=env, cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None and (finishes or not target.exists()):
                time.sleep(LOOK_SECONDS)
        finally:
            if process.poll() is None:  # ranks too: each has a session of its own, and would go on, its folder gone
                send([process.pid, *(one.pid for one in descendants(process.pid))], signal.SIGKILL)
            code = process.wait()
    if not target.exists() or (finishes and code):
        tail = (copy / "output.txt").read_text(errors="replace").strip().splitlines()[-5:]
        raise UserError("the recipe did not arrive there; it said:\n    " + "\n    ".join(tail))


def _rows(path: Path, begin: int, end: int) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl after step `begin` up to `end`, without what a clock has measured, and without the names
    of pictures, which depend on the tracker."""
    left_out = (*WALL_CLOCK_FIELDS, "media")
    rows = [row for row in read_lines(path) if begin < row["step"] <= end]
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


def verify(path: Path, from_step: int | None = None) -> int:
    """Prints the proof. Returns 0 if the replayed bits are the recorded ones and the whole run is exact, else 1.

    Raises:
        UserError: there is nothing to replay, or it cannot be replayed here.
    """
    run = RunDirectory(path)
    lines, since = history(run)
    begin, end = stretch(kept_checkpoints(path), from_step)
    first = begin.step if begin else 0
    status = run.status()
    finishes = status.get("state") == "finished" and end.step == status.get("total_steps")
    print("\n".join([f"{path}: {len(lines)} attempt{'s'[: len(lines) != 1]} came to train", *lines]))
    print(f"replaying steps {first} to {end.step}{' and the end' if finishes else ''} ...", flush=True)
    begun = time.monotonic()
    with _copy(run, begin) as copy:
        _replay(run, copy, end, finishes)
        again = next(kept for kept in kept_checkpoints(copy) if kept.step == end.step)
        results = [_results(one, kept, first, finishes) for one, kept in ((path, end), (copy, again))]
    shapes = end.manifest["shape"], again.manifest["shape"]
    other = [
        f"{name} {shapes[1].get(name)}, was {was}" for name, was in shapes[0].items() if shapes[1].get(name) != was
    ]
    return _verdict(
        results[0], results[1], other, since, f"{end.step - first} steps in {time.monotonic() - begun:.0f} s"
    )


def _results(run: Path, end: Kept, first: int, finishes: bool) -> dict[str, str]:
    """SHA-256 of what the steps after `first` have left, by name."""
    rows = _rows(run / "metrics.jsonl", first, end.step if finishes else end.step - 1)
    results = {
        "state.safetensors": end.state_sha256,
        "other state": sha256(canonical_json(end.manifest["state"]).encode()),
        f"{len(rows)} rows of metrics.jsonl": sha256(canonical_json(rows).encode()),
    }
    if finishes:
        results["final/model.safetensors"] = sha256((run / "final" / "model.safetensors").read_bytes())
    return results


def _verdict(recorded: dict[str, str], replayed: dict[str, str], other: list[str], since: str, took: str) -> int:
    print(f"replayed {took}:")
    for name in recorded | replayed:
        old, new = recorded.get(name, "nothing"), replayed.get(name, "nothing")
        print(f"  {name}\n    recorded {old}\n    replayed {new}{'' if old == new else '  DIFFERENT'}")
    same = recorded == replayed
    if other:
        print(f"this machine is of another shape ({'; '.join(other)}): equal bits are not expected here")
    if since:
        print(f"{'these steps are exact, the run is not' if same else 'not exact'}, since {since}")
    else:
        print("exact" if same else "NOT EXACT")
    return FINISHED if same and not since else FAILED
