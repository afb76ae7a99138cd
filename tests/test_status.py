"""`pitstop status`: hundreds of runs at a glance, and what is broken is named."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import EVENTS, write_run

from pitstop import status
from pitstop.errors import UserError
from pitstop.files import boot_id

HERE = {"host": platform.node(), "boot_id": boot_id()}


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], str]:
    """(cells of each run by its name, everything)."""
    assert status.command([str(folder)]) == 0
    text = capsys.readouterr().out
    lines = text.split("\n\n")[0].splitlines()
    return {cells[0]: cells for cells in (line.split("  ") for line in lines)}, text


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


def test_every_state(tmp_path: Path, dead: int, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a-done")
    halfway = {"step": 30, "result": None}
    write_run(tmp_path / "b-goes", status={"state": "running", "pid": os.getpid(), **HERE, **halfway})
    write_run(tmp_path / "c-dead", status={"state": "running", "pid": dead, **HERE, **halfway}, name="c-dead")
    write_run(tmp_path / "d-silent", status={"state": "running", **halfway})
    write_run(tmp_path / "e-asked", status={"state": "stopped", "reason": "SIGTERM", "restart": "now", **halfway})
    write_run(tmp_path / "f-broke", status={"state": "failed", "reason": "KeyError: 'x'", "restart": "now", **halfway})
    table, text = shown(tmp_path, capsys)
    assert list(table) == ["run", "b-goes", "c-dead", "d-silent", "f-broke", "e-asked", "a-done"]
    assert cells(table["a-done"]) == ["a-done", "finished", "60/60", "100 %", "80.00 %", "-", "0.08 CNY"]
    # 30 steps of 64 images are left, at the 160 images a second of the last row
    assert cells(table["b-goes"]) == ["b-goes", "running", "30/60", "50 %", "80.00 %", "0:12", "0.08 CNY"]
    assert [cells(table[name])[1] for name in ("c-dead", "d-silent")] == ["killed", "killed"]
    assert f"its process (pid {dead}) is gone" in text
    assert "no sign of life from elsewhere" in text
    assert "KeyError: 'x'" in text
    assert "cd /none && accelerate launch digits.py --epochs 2" in text
    assert text.count("accelerate launch") == 4
    assert "--name c-dead" in text
    assert text.splitlines()[-1] == "6 runs: 1 running, 2 killed, 1 failed, 1 stopped, 1 finished; 0.48 CNY together"


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "status.json", "metrics.jsonl", "events.jsonl"):
        run = write_run(tmp_path / name.partition(".")[0])
        (run / name).write_bytes(b'{"torn')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "status.json").write_text("[1]")
    table, text = shown(tmp_path, capsys)
    assert len(table) == 6
    assert f"{tmp_path / 'config' / 'config.json'} is no JSON" in text
    assert f"{tmp_path / 'status' / 'status.json'} is no JSON" in text
    assert f"{tmp_path / 'list' / 'status.json'} is no JSON object" in text
    assert cells(table["metrics"])[1] == "finished"


def test_a_run_whose_status_is_damaged_has_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "status.json").write_text("{torn")
    seen = status.look(run)
    assert (seen.state, seen.step, seen.total_steps, seen.accuracy) == ("killed", 60, 60, 0.8)
    assert seen.words == "status.json is damaged or missing, and no process is at it"
    (run / "metrics.jsonl").unlink()
    assert status.look(run).state == "not begun"
    (run / "checkpoints" / "step-00000016").mkdir(parents=True)
    assert status.look(run).state == "killed"


def test_a_torn_last_row(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status={"state": "running", "result": None})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "step": 90, "accuracy": 0.9')
    assert status.look(run).accuracy == 0.8


def test_what_was_begun_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "events.jsonl").touch()
    table, text = shown(tmp_path, capsys)
    assert cells(table["young"]) == ["young", "not begun", "-", "-", "-", "-", "-"]
    assert "accelerate" not in text


def test_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "mine" / "one")
    write_run(tmp_path / "one")
    write_run(tmp_path / "archive" / "old")
    write_run(tmp_path / "one" / "checkpoints" / "not-a-run")
    table, _ = shown(tmp_path, capsys)
    assert list(table)[1:] == ["mine/one", "one"]
    table, _ = shown(tmp_path / "one", capsys)
    assert list(table)[1:] == ["one"], "a run itself"


def test_how_many_processes(tmp_path: Path) -> None:
    events = [event | ({"shape": {"processes": 3}} if event["event"] == "start" else {}) for event in EVENTS]
    run = write_run(tmp_path / "run", events=events, status={"state": "stopped"})
    assert "--num_processes 3" in status.look(run).command


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run lies in"):
        status.command([str(tmp_path)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder"):
        status.command(["--runs_dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        status.command([str(tmp_path / "file")])


def test_hundreds_of_runs_are_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"kind": "train", "step": step, "images_per_second": 100.0, "loss": 1.0} for step in range(5000)]
    first = write_run(tmp_path / "run-0", rows=rows, status={"state": "stopped"})
    for number in range(1, 300):
        other = tmp_path / f"run-{number}"
        other.mkdir()
        for name in ("config.json", "status.json", "metrics.jsonl", "events.jsonl"):
            (other / name).write_bytes((first / name).read_bytes())
    begun = time.process_time()
    shown(tmp_path, capsys)
    assert time.process_time() - begun < 3


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    write_run(tmp_path / "run", status={"state": "stopped"})
    code = (
        "import sys\nfrom pitstop import status\n"
        f"status.command([{str(tmp_path)!r}])\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", f"import json\n{code}"], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "matplotlib"} & set(json.loads(done.stdout.splitlines()[-1])) == set()
