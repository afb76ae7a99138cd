"""Rows of metrics.jsonl, by their number: the file is the truth, and what is sent is read from it."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from pitstop.files import checkpoint_steps, read_json

Row = dict[str, Any]
NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as JSON has them, see files.plain


class Rows:
    """The rows from the one numbered `first` on."""

    def __init__(self, path: Path, first: int) -> None:
        self._path, self._first = path, first
        self._position, self._number = 0, 0  # in bytes and in rows, of what was read

    def up_to(self, size_bytes: int) -> list[Row]:
        """Those below `size_bytes`, which a checkpoint covers, that were not given before."""
        if size_bytes <= self._position or not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._position)
            data = file.read(size_bytes - self._position)
        whole = data[: data.rfind(b"\n") + 1]
        rows = list(filter(None, map(_row, whole.splitlines())))
        new = rows[max(0, self._first - self._number) :]
        self._position += len(whole)
        self._number += len(rows)
        return new


def _row(line: bytes) -> Row | None:
    """None: it is no row; a disk that broke cut it short, and no tracker counts it."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "kind" in row and "step" in row else None


def covered_bytes(run: Path) -> int:
    """How much of metrics.jsonl will not be written anew: all, if the run is finished; else what its newest checkpoint
    covers. Rows behind it belong to steps that will be done again."""
    metrics = run / "metrics.jsonl"
    try:
        if read_json(run / "status.json").get("state") == "finished":
            return metrics.stat().st_size
    except (OSError, ValueError, AttributeError):
        pass  # it is derived: the checkpoints say where the run stands
    folder = run / "checkpoints"
    for _, path in checkpoint_steps(folder) if folder.is_dir() else []:
        try:
            return int(read_json(path / "manifest.json")["metrics_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: the run will set it aside, and take the one before
    return 0


def values(row: Row) -> Row:
    """A row as a tracker takes it: `train/loss`, `eval/class_accuracy/cat`, the step, and when it was."""
    sent = {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "step", "time", "media")}
    for key in [key for key, value in sent.items() if isinstance(value, dict)]:
        sent |= {f"{key}/{name}": figure for name, figure in sent.pop(key).items()}
    sent = {key: NO_NUMBERS.get(value, value) if isinstance(value, str) else value for key, value in sent.items()}
    when = {"_timestamp": datetime.fromisoformat(row["time"]).timestamp()} if "time" in row else {}
    return sent | {"global_step": row["step"]} | when
