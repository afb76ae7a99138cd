"""`pitstop sync` on run directories made by hand: what is missing is sent, and nothing twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.harness import Job, Warm
from wandb_server import WandbServer

from pitstop.curves import Target
from pitstop.errors import RunInUseError, UserError
from pitstop.sync import sync

SCRIPT = "import sys; from pitstop.sync import command; sys.exit(command(sys.argv[1:]))"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    (path / "config.json").write_text(
        json.dumps({"wandb_id": "1a2b3c4d", "definition": {"seed": 1}, "program": "r.py"})
    )
    (path / "status.json").write_text(json.dumps({"state": "running", "restart": "now"}))
    return path


@pytest.fixture
def go(warm: Warm, run: Path) -> Callable[..., Job]:
    """`pitstop sync r <words>` beside that server."""

    def go(server: WandbServer, *words: str) -> Job:
        script, out = run.parent.parent / "sync.py", run.parent.parent / "out.txt"
        script.write_text(SCRIPT)
        out.unlink(missing_ok=True)
        return warm.start([script, "r", *words], cwd=script.parent, out=out, env=server.environment).wait(60)

    return go


def write(run: Path, number: int, covered: int, **more: Any) -> None:
    """metrics.jsonl of so many rows, of which a checkpoint covers the first `covered`."""
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1 / (1 + step)}) + "\n" for step in range(number - 1)]
    lines += [json.dumps({"kind": "eval", "step": number - 1, "accuracy": 0.5, **more}) + "\n"]
    (run / "metrics.jsonl").write_text("".join(lines))
    manifest = run / "checkpoints" / f"step-{covered:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"metrics_bytes": len("".join(lines[:covered]))}))


def test_nothing_to_send_asks_nobody(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, 5, 0)
    assert sync(run, Target()) == 0
    assert "nothing to upload yet" in capsys.readouterr().out


def test_a_config_that_says_too_little_is_named(run: Path) -> None:
    write(run, 5, 5)
    (run / "config.json").write_text(json.dumps({"definition": {}}))
    with pytest.raises(UserError, match=r"config\.json is damaged, or of another pitstop \(KeyError: 'wandb_id'\)"):
        sync(run, Target())


@pytest.mark.slow
def test_a_line_that_is_no_row_stops_nothing(run: Path, go: Callable[..., Job]) -> None:
    write(run, 9, 9)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:3], b'{"kind": "tr\n', b"\n", *lines[3:]]))
    (run / "status.json").write_text(json.dumps({"state": "finished", "restart": "never"}))
    with WandbServer() as server:
        for new in (9, 0):
            job = go(server)
            assert job.codes == [0], job.text
            assert f"W&B has all 9 rows, {new} of them new" in job.text
        assert [row["global_step"] for row in server.run().rows] == list(range(9))


def test_not_while_another_process_sends(run: Path, warm: Warm, tmp_path: Path) -> None:
    write(run, 5, 5)
    (run / "curves").mkdir()
    script = tmp_path / "hold.py"
    script.write_text(
        f"import time; from pitstop.rundir import Lock; from pathlib import Path; Lock(Path({str(run / 'curves')!r})"
        ").acquire(0); print('held', flush=True); time.sleep(60)"
    )
    job = warm.start([script], cwd=tmp_path, out=tmp_path / "hold.txt")
    while "held" not in job.text:
        assert not job.over.wait(0.02)
    with pytest.raises(RunInUseError, match="in use by another process: pid"):
        sync(run, Target())
    job.kill()


@pytest.mark.slow
def test_what_is_missing_is_sent_with_its_images(run: Path, go: Callable[..., Job]) -> None:
    """A run that goes on, then is finished; an image in a row; an artifact; another project gets all rows."""
    from PIL import Image

    with WandbServer() as server:
        write(run, 9, 4)
        job = go(server)
        assert job.codes == [0], job.text
        assert "W&B has all 4 rows, 4 of them new" in job.text
        assert server.run().ends[-2:] == [{"preempting": True}, {"complete": True, "exitcode": 75}]
        (run / "media").mkdir()
        Image.new("RGB", (4, 4)).save(run / "media" / "c.png")
        there, gone = ({"path": f"media/{name}.png", "caption": "step 8"} for name in "cx")
        write(run, 9, 9, media={"confusion": [there, gone], "lost": [gone]})
        (run / "status.json").write_text(json.dumps({"state": "finished", "restart": "never", "cost": 1.5}))
        (run / "final").mkdir()
        (run / "final" / "model.safetensors").write_bytes(b"weights")
        (run / "events.jsonl").write_text(json.dumps({"event": "tracker", **Target(artifact=True).event()}) + "\n")
        job = go(server)
        assert job.codes == [0], job.text
        assert "W&B has all 9 rows, 5 of them new" in job.text
        rows = server.run().rows
        assert [(row["_step"], row["global_step"]) for row in rows] == [(step, step) for step in range(9)]
        assert rows[8]["eval/confusion"]["count"] == 1
        assert "eval/lost" not in rows[8]
        (image,) = [name for name in server.run().files if name.endswith(".png")]
        assert server.run().files[image] == (run / "media" / "c.png").read_bytes()
        assert server.run().summary["run/cost"] == 1.5
        assert [artifact["committed"] for artifact in server.artifacts] == [True] * len(server.artifacts)
        assert server.artifacts
        assert go(server, "--wandb_project", "other").codes == [0]
        assert len(server.runs["other", "1a2b3c4d"].rows) == 9


@pytest.mark.slow
def test_a_server_that_refuses_rows_is_not_believed(run: Path, go: Callable[..., Job]) -> None:
    """The client ends without an error when an upload is refused for good; so W&B is asked again."""
    write(run, 9, 9)
    with WandbServer() as server:
        server.fault = "refuses rows"
        job = go(server)
        assert job.codes == [1], job.text
        assert "W&B has taken 0 of 9 rows" in job.text
        server.fault = ""
        assert go(server).codes == [0]
        assert len(server.run().rows) == 9
