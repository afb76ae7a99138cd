"""A tracker of accelerate's, the real one: TensorBoard's files hold each row once, also after a kill -9."""

import json
import struct
from collections import Counter
from pathlib import Path

import pytest
from faults.harness import Warm

SCRIPT = """
import os, signal, sys
from pathlib import Path
from pitstop.curves.about import Target
from pitstop.curves.other_run import OtherRun
from pitstop.curves.rows import Rows
run = Path(sys.argv[1])
client = OtherRun(run, Target("tensorboard"))
client.send(Rows(run / "metrics.jsonl", client.has).up_to(int(sys.argv[2])))
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
client.finish(0)
"""


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


def test_tensorboard_has_each_row_once(warm: Warm, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run, script = tmp_path / "r", tmp_path / "send.py"
    run.mkdir()
    script.write_text(SCRIPT)
    (run / "config.json").write_text(json.dumps({"wandb_id": "1", "definition": {"seed": 1, "sizes": [1, 2]}}))
    lines = [json.dumps({"kind": "train", "step": step, "loss": 0.5, "note": "x"}) + "\n" for step in range(10)]
    (run / "metrics.jsonl").write_text("".join(lines))
    for rows, how, code in ((6, "kill", -9), (8, "end", 0), (10, "end", 0)):
        size = len("".join(lines[:rows]))
        job = warm.start([script, run, size, how], cwd=tmp_path, out=tmp_path / "out.txt").wait(60)
        assert job.codes == [code], job.text
    expected = Counter((step, tag) for step in range(10) for tag in ("train/loss", "global_step"))
    assert logged(run / "tensorboard") == expected
