"""`pitstop status`: every run below a folder at a glance, and what to type where one waits for it."""

import json
import os
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pitstop import again
from pitstop.attach import ended
from pitstop.clocks import duration
from pitstop.errors import FINISHED, UserError
from pitstop.files import read_json
from pitstop.flags import parse
from pitstop.runs import Flags

RUN_FILES = ("config.json", "status.json", "events.jsonl")  # a folder with one of them is a run
NOT_RUNS = ("archive", "caches")
DEEPEST = 3  # folders below the one that is given
ORDER = ("running", "killed", "failed", "stopped", "not begun", "finished")
HEADINGS = ("run", "state", "step", "done", "accuracy", "time left", "cost")


class Status(Flags):
    """Lists every run below a folder: its state, how far it is, its last accuracy, the time that is left, what it has
    cost, and the command that continues it. It only looks."""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop status <argv>`.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    folder = parse(Status, argv, words=("runs_dir",), program="pitstop status").runs_dir
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: the one in which runs lie was expected.")
    runs = [look(path) for path in find(folder)]
    if not runs:
        raise UserError(f"no run lies in {folder}: say pitstop status FOLDER, or start one.")
    runs.sort(key=lambda run: (ORDER.index(run.state), run.path))
    try:
        print("\n".join([*table(runs, folder), *_details(runs, folder), "", _sum(runs)]), flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it leaves
    return FINISHED


def find(folder: Path) -> Iterator[Path]:
    """Directories of runs, in the order of their names. What is below a run is its own."""
    for path, names, files in os.walk(folder):
        if any(name in files for name in RUN_FILES):
            yield Path(path)
            names.clear()
        elif len(Path(path).relative_to(folder).parts) >= DEEPEST:
            names.clear()
        names[:] = sorted(name for name in names if name not in NOT_RUNS and not name.startswith("."))


@dataclass(frozen=True)
class Glance:
    """What is seen of a run without reading much of it.

    Attributes:
        state: one of ORDER.
        words: how that is known, for a run that does not run.
        left_seconds: at its last speed; None where that is not known.
        command: continues it; empty where that is not wanted, or not known.
        damaged: files that cannot be read, with the reason.
    """

    path: Path
    state: str
    words: str
    step: int | None
    total_steps: int | None
    accuracy: float | None
    left_seconds: float | None
    cost: float | None
    currency: str
    command: str
    damaged: list[str] = field(default_factory=list)


def look(run: Path) -> Glance:
    damaged: list[str] = []
    status, about = (_object(run / name, damaged) for name in ("status.json", "config.json"))
    words = ended(run, status)
    state = str(status.get("state", "")) if words else "running"
    metrics = _bytes(run / "metrics.jsonl", damaged)
    if words and state not in ("finished", "stopped", "failed"):
        trained = bool(state or metrics or any((run / "checkpoints").glob("step-*")))
        words = words if state or not trained else "status.json is damaged or missing, and no process is at it"
        state = "killed" if trained else "not begun"
    row = _last(metrics, b'"kind": "eval"')
    at = status or _last(_bytes(run / "events.jsonl", damaged), b'"total_steps"')
    step, total = _number(at, "step"), _number(at, "total_steps")
    config = about.get("config")
    return Glance(
        path=run,
        state=state,
        words="" if state in ("running", "finished") else words,
        step=None if step is None else int(step),
        total_steps=None if total is None else int(total),
        accuracy=_number(status.get("result") or row, "accuracy"),
        left_seconds=None if state == "finished" else _left(_last(metrics, b'"kind": "train"'), config, step, total),
        cost=_number(status, "cost") if status.get("price") or status.get("cost") else None,
        currency=str(status.get("currency", "")),
        command="" if state in ("running", "finished") or not config else _command(run, about, damaged),
        damaged=damaged,
    )


def _object(path: Path, damaged: list[str]) -> dict[str, Any]:
    """Of a JSON file; empty where it is missing, or damaged."""
    try:
        found = read_json(path)
        if isinstance(found, dict):
            return found
        damaged.append(f"{path} is no JSON object")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        damaged.append(str(error))
    return {}


def _bytes(path: Path, damaged: list[str]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        damaged.append(str(error))
        return b""


def _last(lines: bytes, mark: bytes) -> dict[str, Any]:
    """The last whole line with `mark` in it: only that one is parsed."""
    end = len(lines)
    while (at := lines.rfind(mark, 0, end)) >= 0:
        begin, stop = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        try:
            found = json.loads(lines[begin : stop if stop >= 0 else len(lines)])
            if isinstance(found, dict):
                return found
        except ValueError:
            pass  # cut short by a crash
        end = begin
    return {}


def _number(row: object, name: str) -> float | None:
    value = row.get(name) if isinstance(row, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _left(row: dict[str, Any], config: object, step: float | None, total: float | None) -> float | None:
    """Seconds, without evaluations and saves."""
    speed, batch = _number(row, "images_per_second"), _number(config, "batch_size")
    return (total - step) * batch / speed if speed and batch and step is not None and total is not None else None


def _command(run: Path, about: dict[str, Any], damaged: list[str]) -> str:
    """As it is typed here: with `cd`, where the run was begun elsewhere."""
    start = _last(_bytes(run / "events.jsonl", damaged), b'"event": "start"')
    processes = _number(start.get("shape"), "processes")
    folder = str(about.get("folder", ""))
    there = f"cd {shlex.quote(folder)} && " if folder and folder != os.getcwd() else ""
    return there + again.command(about, int(processes or 1))


def table(runs: Sequence[Glance], folder: Path) -> list[str]:
    """Lines of equal columns: words to the left, numbers to the right."""
    rows = [HEADINGS, *(_cells(run, folder) for run in runs)]
    widths = [max(_width(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return ["  ".join(_fit(cell, width, index > 1) for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
            .rstrip() for row in rows]  # fmt: skip


def _fit(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """On a terminal: a Chinese character takes two places, an accent of its own none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _name(run: Glance, folder: Path) -> str:
    return str(run.path.relative_to(folder)) if run.path != folder else run.path.name


def _cells(run: Glance, folder: Path) -> tuple[str, ...]:
    known = run.step is not None and run.total_steps
    return (
        _name(run, folder),
        run.state,
        f"{run.step}/{run.total_steps}" if known else "-",
        f"{100 * (run.step or 0) // (run.total_steps or 1)} %" if known else "-",
        "-" if run.accuracy is None else f"{100 * run.accuracy:.2f} %",
        "-" if run.left_seconds is None else duration(round(run.left_seconds)),
        "-" if run.cost is None else f"{run.cost:.2f} {run.currency}",
    )


def _details(runs: Sequence[Glance], folder: Path) -> Iterator[str]:
    """What is to be said of those that do not run and are not finished, and of damaged files."""
    for run in runs:
        lines = [f"    {line}" for line in (*run.damaged, run.words, run.command) if line]
        if lines:
            yield from ("", _name(run, folder), *lines)


def _sum(runs: Sequence[Glance]) -> str:
    """`12 runs: 1 running, 2 killed, 9 finished; 3.20 CNY together`"""
    states, costs = Counter(run.state for run in runs), Counter[str]()
    for run in runs:
        costs[run.currency] += run.cost or 0.0  # type: ignore[assignment]
    listed = ", ".join(f"{states[state]} {state}" for state in ORDER if states[state])
    spent = " and ".join(f"{cost:.2f} {currency}" for currency, cost in costs.items() if cost)
    return f"{len(runs)} run{'s'[: len(runs) != 1]}: {listed}" + (f"; {spent} together" if spent else "")
