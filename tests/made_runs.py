"""Run directories as a training would have left them, made without one: small enough to be computed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHAPE = {"device": "AMD EPYC", "processes": 1, "threads": 2, "precision": "bf16", "torch": "2.14.1", "cuda": None}
CONFIG = {"epochs": 2.0, "batch_size": 64, "model": "resnet18", "data": "digits", "seed": 0, "name": "", "price": 3.6}


def _event(second: float, attempt: int, up: float, event: str, **fields: Any) -> dict[str, Any]:
    time = f"2026-01-01T00:{int(second) // 60:02}:{int(second) % 60:02}.000+00:00"
    return {"event": event, "time": time, "attempt": attempt, "up": up, **fields}


# Attempt 1 begins at second 0, dies after 30 s; attempt 2 at 100, dies in its start-up after 5 s; attempt 3 at 200.
EVENTS = [
    _event(4, 1, 4.0, "attempt"),
    _event(10, 1, 10.0, "start", step=0, total_steps=60, trained=0.0, shape=SHAPE),
    _event(20, 1, 20.0, "save", step=16, trained=8.0, stall_seconds=0.5),
    _event(30, 1, 30.0, "heartbeat", step=32, total_steps=60, trained=16.0),
    _event(104, 2, 4.0, "attempt"),
    _event(105, 2, 5.0, "heartbeat"),
    _event(204, 3, 4.0, "attempt"),
    _event(210, 3, 10.0, "start", step=16, total_steps=60, trained=0.0, shape=SHAPE),
    _event(211, 3, 11.0, "restore", step=16, seconds=2.0),
    _event(240, 3, 40.0, "save", step=60, trained=22.0, stall_seconds=1.0),
    _event(245, 3, 45.0, "finished", reason="", step=60, total_steps=60, trained=22.0),
]
ROWS = [
    *({"kind": "train", "step": step, "epoch": step / 30, "loss": 2 - step / 40, "lr": 0.2 - step / 400,
       "images_per_second": 100.0 + step, "time": f"2026-01-01T00:03:{step % 60:02}.000+00:00"}
      for step in range(10, 61, 10)),
    {"kind": "eval", "step": 30, "epoch": 1.0, "loss": 1.1, "accuracy": 0.6, "seconds": 1.5,
     "time": "2026-01-01T00:03:50.000+00:00"},
    {"kind": "eval", "step": 60, "epoch": 2.0, "loss": 0.5, "accuracy": 0.8, "seconds": 2.5,
     "time": "2026-01-01T00:04:01.000+00:00"},
]  # fmt: skip
STATUS = {"state": "finished", "restart": "never", "reason": "", "step": 60, "total_steps": 60, "attempt": 3,
          "price": 3.6, "cost": 0.08, "currency": "CNY", "result": {"loss": 0.5, "accuracy": 0.8},
          "heartbeat": "2026-01-01T00:04:05.000+00:00", "pid": 1, "host": "elsewhere", "boot_id": "gone"}  # fmt: skip


def write_run(
    path: Path,
    *,
    events: Sequence[dict[str, Any]] = EVENTS,
    rows: Sequence[dict[str, Any]] = ROWS,
    status: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """`status` and `config` change some of the fields."""
    path.mkdir(parents=True)
    values = CONFIG | config
    definition = {"recipe": "digits", "code": "c0de"} | {
        name: value for name, value in values.items() if name not in ("name", "price")
    }
    about = {"format": 1, "definition": definition, "config": values, "program": "/none/digits.py", "folder": "/none"}
    (path / "config.json").write_text(json.dumps(about, ensure_ascii=False))
    (path / "status.json").write_text(json.dumps(STATUS | (status or {}), ensure_ascii=False))
    for name, lines in (("events", events), ("metrics", rows)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def write_predictions(
    path: Path, classes: Sequence[str], *, images: int = 400, size: int = 16, channels: int = 3, skill: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right where `skill` outdoes noise. Returns (logits_NK, labels_N)."""
    random = np.random.default_rng(0)
    labels_N = np.arange(images) % len(classes)
    logits_NK = random.normal(size=(images, len(classes))).astype(np.float32)
    logits_NK[np.arange(images), labels_N] += random.normal(skill, 1, images)
    powers = np.exp(logits_NK.astype(np.float64))
    top_N2 = np.sort(powers / powers.sum(1, keepdims=True), 1)[:, -2:]
    right_N = logits_NK.argmax(1) == labels_N
    falling, closest = np.argsort(-top_N2[:, 1], kind="stable"), np.argsort(top_N2[:, 1] - top_N2[:, 0], kind="stable")
    kinds = (falling[~right_N[falling]], closest, falling[right_N[falling]])
    rows_M = np.array(list(dict.fromkeys(int(row) for kind in kinds for row in kind[:24])), np.int64)
    images_MCHW = random.integers(0, 256, (len(rows_M), channels, size, size), np.uint8)
    folder = path / "predictions"
    folder.mkdir()
    save_file({"logits_NK": logits_NK, "labels_N": labels_N.astype(np.int64)}, folder / "predictions.safetensors")
    save_file({"images_MCHW": images_MCHW, "rows_M": rows_M}, folder / "pictures.safetensors")
    about = {"classes": list(classes), "split": "test", "step": 60, "weights": "final", "names": [""] * len(rows_M)}
    (folder / "about.json").write_text(json.dumps(about, ensure_ascii=False))
    return logits_NK, labels_N
