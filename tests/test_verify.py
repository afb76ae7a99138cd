"""pitstop verify: what was computed is computed again, and one flipped bit is seen."""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Run
from supervise.fakes import survivors, until

from pitstop import checkpoint, verify
from pitstop.files import sha256


def of(run: Run, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pitstop.cli", "verify", str(run.path), *words]
    env = {**run.warm._environment, "STEP_LOG": str(run.folder / "again.jsonl"), "LOCAL_WORLD_SIZE": "2"} | more
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.mark.slow
def test_a_finished_run_is_exact_and_a_changed_one_is_not(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "10steps")
    run.killed("step:13")
    run.finish()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    done = of(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "exact"
    recorded = sha256((run.path / "checkpoints/step-00000026/state.safetensors").read_bytes())
    assert done.stdout.count(recorded) == 2
    assert done.stdout.count(sha256(run.final()["model.safetensors"])) == 2
    assert "attempt 2 from step 10" in done.stdout
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert [path.name for path in run.path.parent.iterdir()] == ["r"], "something is left beside it"
    # Now the recorded end is another one, with hashes that fit it: only computing it again can tell.
    newest = checkpoint.verify(run.path / "checkpoints/step-00000026")
    name = next(n for n, tensor in newest.tensors.items() if n.startswith("model/") and tensor.is_floating_point())
    newest.tensors[name].view(-1)[0] += 1e-6
    about = {key: value for key, value in newest.manifest.items() if key not in ("files", "seal", "format", "step")}
    checkpoint.write(newest.path.parent, 26, checkpoint.to_bytes(newest.tensors, {}), about, keep=9)
    done = of(run)
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout
    assert done.stdout.splitlines()[-1] == "NOT EXACT"


@pytest.mark.slow
def test_from_an_older_checkpoint_of_a_run_that_is_not_finished(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "5steps", "--keep", "9")
    run.killed("step:17")
    done = of(run, "--from_step", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replaying steps 5 to 10 ..." in done.stdout
    recorded = json.loads((run.path / "checkpoints/step-00000010/manifest.json").read_text())
    assert done.stdout.count(recorded["files"]["state.safetensors"]["sha256"]) == 2
    assert {row["step"] for row in verify.read_lines(run.folder / "again.jsonl")} >= set(range(5, 10))


@pytest.mark.slow
def test_ranks_end_with_the_replay(tiny: Callable[..., Run]) -> None:
    """They have sessions of their own, and would go on behind the last checkpoint that is compared."""
    run = tiny("--save_every", "5steps", "--keep", "9", ranks=2)
    run.killed("step:13", KILL_RANK="0")
    done = of(run, "--from_step", "5", TEST_MARK=(mark := f"mark-{uuid.uuid4()}"))
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: not survivors(mark), "they were killed just now", 2)
    assert [path.name for path in run.path.parent.iterdir()] == ["r"], "something is left beside it"


def test_what_cannot_be_replayed_is_said(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "10steps")
    run.killed("step:5")
    with pytest.raises(verify.UserError, match="no checkpoint to compare with"):
        verify.verify(run.path)
    run.killed("step:22")
    with pytest.raises(verify.UserError, match="--from_step 3: one of 0, 10 was expected"):
        verify.verify(run.path, 3)
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(config | {"program": "/gone/recipe.py"}))
    with pytest.raises(verify.UserError, match=r"/gone/recipe\.py is not here"):
        verify.verify(run.path)


def test_a_change_of_shape_is_the_end_of_exactness(tmp_path: Path) -> None:
    events = [
        {"event": "start", "attempt": 1, "step": 0, "shape": {"device": "A100", "processes": 1, "precision": "bf16"}},
        {"event": "start", "attempt": 2, "step": 9, "shape": {"device": "A10G", "processes": 1, "precision": "bf16"}},
        {"event": "shape_changed", "attempt": 2, "step": 9, "changes": ["device: A100 -> A10G"]},
        {"event": "start", "attempt": 3, "step": 12, "shape": {"device": "A10G", "processes": 1, "precision": "bf16"}},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    lines, since = verify.history(verify.RunDirectory(tmp_path))
    assert len(lines) == 3
    assert since == "attempt 2 (device: A100 -> A10G)"


def test_what_a_clock_has_measured_and_pictures_are_not_compared(tmp_path: Path) -> None:
    row = {"kind": "eval", "step": 4, "loss": 0.5, "class_accuracy": {"a": 1.0}}
    clocks = dict.fromkeys(("time", "seconds", "images_per_second", "goodput", "cost", "gpu_utilization"), 1)
    (tmp_path / "m.jsonl").write_text(json.dumps(row | clocks | {"media": {"x": []}, "gpu_memory_gb": 2}) + "\n")
    assert verify._rows(tmp_path / "m.jsonl", 0, 4) == [row]
