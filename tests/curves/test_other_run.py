"""Trackers of accelerate's. The real one: TensorBoard's files hold each row once, also after a kill -9. And one of ours
in the place of MLflow, which has a row at once, and of trackio, which sends later: none of their rows is missing."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Warm

SCRIPT = """
import os, signal, sys
from pathlib import Path
from pitstop.curves.about import Target
from pitstop.curves.other_run import OtherRun
from pitstop.curves.rows import Rows
run = Path(sys.argv[1])
client = OtherRun(run, Target(sys.argv[4]))
client.send(Rows(run / "metrics.jsonl", client.has).up_to(int(sys.argv[2])))
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
client.finish(0)
"""
OURS = """
import json
from types import SimpleNamespace
from accelerate import tracking
class Ours:
    tracker = SimpleNamespace(info=SimpleNamespace(run_id="77"))
    def __init__(self, **given): print(json.dumps(["given", given]), flush=True)
    def store_init_configuration(self, config): print(json.dumps(["config", config]), flush=True)
    def log(self, values, step): print(json.dumps([step, values]), flush=True)
    def finish(self): pass
for name in ("mlflow", "trackio"):
    tracking.LOGGER_TYPE_TO_CLASS[name] = Ours
"""
KILLED_ONCE = ((6, "kill", -9), (8, "end", 0), (10, "end", 0))  # rows that there are, how the attempt ends


def logged(folder: Path) -> Counter[tuple[int, str]]:
    """(step, tag) -> how often, in all event files there: TFRecord framing, TensorBoard's protobuf."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: Counter[tuple[int, str]] = Counter()
    for path in folder.glob("events.*"):
        data, position = path.read_bytes(), 0
        while position + 12 <= len(data):
            (length,) = struct.unpack("<Q", data[position : position + 8])
            event = event_pb2.Event()
            event.ParseFromString(data[position + 12 : position + 12 + length])
            found.update((event.step, value.tag) for value in event.summary.value)
            position += 16 + length
    return found


def attempts(warm: Warm, run: Path, script: str, tracker: str, **env: str) -> list[str]:
    """What each attempt says."""
    run.mkdir()
    program = run.parent / "send.py"
    program.write_text(script)
    (run / "config.json").write_text(json.dumps({"wandb_id": "1", "definition": {"seed": 1, "sizes": [1, 2]}}))
    row = {"kind": "train", "loss": 0.5, "note": "x", "time": "2026-11-24T18:00:00+00:00"}
    lines = [json.dumps({**row, "step": step}) + "\n" for step in range(10)]
    (run / "metrics.jsonl").write_text("".join(lines))
    said = []
    for rows, how, code in KILLED_ONCE:
        argv, out = [program, run, len("".join(lines[:rows])), how, tracker], run.parent / f"{rows}.txt"
        job = warm.start(argv, cwd=run.parent, out=out, env=env).wait(60)
        assert job.codes == [code], job.text
        said.append(job.text)
        for path in run.glob("tensorboard/events.*"):  # named by the second, and the next attempt is not in the same
            path.rename(f"{path}-{rows}")
    return said


def test_tensorboard_has_each_row_once(warm: Warm, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run = tmp_path / "r"
    attempts(warm, run, SCRIPT, "tensorboard")
    expected = Counter((step, tag) for step in range(10) for tag in ("train/loss", "global_step"))
    assert logged(run / "tensorboard") == expected


@pytest.mark.parametrize(
    ("tracker", "first_again", "continued"), [("mlflow", 6, [None, "77", "77"]), ("trackio", 0, [None] * 3)]
)
def test_no_row_is_missing(
    warm: Warm, tmp_path: Path, tracker: str, first_again: int, continued: list[str | None]
) -> None:
    """What a tracker surely has is not sent again. Started beside other ranks, it does not wait for them."""
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "1"}
    said = attempts(warm, tmp_path / "r", OURS + SCRIPT, tracker, **ranks)
    told: list[list[list[Any]]] = [[json.loads(line) for line in text.splitlines()] for text in said]
    rows = [[line for line in attempt if line[0] not in ("given", "config")] for attempt in told]
    assert [[step for step, _ in each] for each in rows] == [[*range(6)], [*range(first_again, 8)], [8, 9]]
    assert all(row == [row[0], {"train/loss": 0.5, "global_step": row[0]}] for each in rows for row in each)
    assert [line[1].get("run_id") for attempt in told for line in attempt if line[0] == "given"] == continued
    assert told[0][1] == ["config", {"seed": 1, "sizes": "[1, 2]"}]
