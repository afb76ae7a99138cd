"""`pitstop attach` shows lines as they come, knows the dead from the living, and never touches the run."""

import fcntl
import json
import os
import platform
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pitstop import attach, cli
from pitstop.errors import UserError
from pitstop.files import boot_id
from pitstop.launcher import command_line
from pitstop.rundir import now

STATUS = {
    "state": "running",
    "restart": "now",
    "reason": "",
    "step": 30,
    "total_steps": 120,
    "attempt": 1,
    "host": platform.node(),
    "boot_id": boot_id(),
}


@pytest.fixture
def living() -> Iterator[int]:
    """The pid of a process that lives until the end of the test."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(attach, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.delenv("PITSTOP_RUNS_DIR", raising=False)
    path = tmp_path / "runs" / "r"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "train.log").write_text("".join(f"line {number}\n" for number in range(1, 41)))
    return path


def write(run: Path, **fields: Any) -> dict[str, Any]:
    status = STATUS | {"heartbeat": now()} | fields
    temporary = run / ".status.tmp"
    temporary.write_text(json.dumps(status))
    temporary.rename(run / "status.json")
    return status


def hold(run: Path, pid: int) -> None:
    (run / "lock").write_text(json.dumps({"pid": pid, "host": platform.node(), "boot_id": boot_id()}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "finished", "restart": "never", "result": {"accuracy": 0.97, "loss": 0.1}}, "accuracy 0.9700, loss"),
        ({"state": "finished", "restart": "never", "result": None}, "finished after 120 steps"),
        ({"state": "stopped", "reason": "SIGTERM"}, "stopped at step 30 of 120 (SIGTERM); the same command continues"),
        ({"state": "stopped", "reason": "budget", "restart": "person"}, "(budget); a person decides"),
        ({"state": "failed", "reason": "ValueError: x"}, "failed at step 30 of 120 (ValueError: x)"),
    ],
)
def test_a_run_that_has_ended(
    fields: dict[str, Any], said: str, run: Path, dead: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, pid=dead, **fields)
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert cli.main(["attach", "r", "--runs_dir", str(run.parent)]) == 0
    out = capsys.readouterr().out
    assert said in out.splitlines()[-1]
    assert "line 40" in out
    assert "line 31\n" in out
    assert "line 30\n" not in out, "ten lines are enough to begin with"
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_lines_are_shown_as_they_come(run: Path, living: int) -> None:
    write(run, pid=living)
    command = [sys.executable, "-m", "pitstop.cli", "attach", "--runs_dir", str(run.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert str(run) in next(lines)
        while next(lines) != "step 30/120\n":
            pass
        with open(run / "train.log", "a") as log:
            log.write("half a ")
            log.flush()
            time.sleep(0.7)
            log.write("line\nanother\n")
        assert next(lines) == "half a line\n"
        assert next(lines) == "another\n"
        write(run, pid=living, state="stopped", reason="SIGTERM")
        assert "stopped at step 30 of 120" in next(lines)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_ctrl_c_only_detaches(run: Path, living: int) -> None:
    write(run, pid=living)
    command = [sys.executable, "-m", "pitstop.cli", "attach", "r", "--runs_dir", str(run.parent)]
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        os.execv(sys.executable, command)
    text = b""
    while b"30/120" not in text:
        text += os.read(terminal, 4096)
    assert b"line 40" in text
    assert b"25%" in text, "the bar"
    os.write(terminal, b"\x03")
    while b"detached: the run goes on" not in text:
        text += os.read(terminal, 4096)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    os.kill(living, 0)


def test_a_reader_that_goes_away(run: Path, living: int) -> None:
    write(run, pid=living)
    command = [sys.executable, "-m", "pitstop.cli", "attach", "r", "--runs_dir", str(run.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        with open(run / "train.log", "a") as log:
            log.write("to nobody\n")
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_dead_are_known(run: Path, living: int, dead: int) -> None:
    long_ago = (datetime.now(timezone.utc) - timedelta(minutes=5)).isoformat()
    ahead = (datetime.now(timezone.utc) + timedelta(hours=5)).isoformat()
    for fields, said in (
        ({"pid": living}, ""),
        ({"pid": dead}, f"its process (pid {dead}) is gone"),
        ({"pid": living, "boot_id": "another"}, "the machine was started anew"),
        ({"pid": dead, "host": "elsewhere", "boot_id": "another"}, ""),
        ({"pid": dead, "host": "elsewhere", "boot_id": "another", "heartbeat": ahead}, ""),  # another clock
        (
            {"pid": living, "host": "elsewhere", "boot_id": "another", "heartbeat": long_ago},
            "no sign of life from else",
        ),
        ({"pid": living, "host": "elsewhere", "heartbeat": None}, "has left no heartbeat"),
    ):
        end = attach.ended(run, write(run, **fields))
        assert said in end
        assert bool(end) == bool(said), (fields, end)


def test_a_zombie_does_not_live(run: Path) -> None:
    process = subprocess.Popen(["true"])
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert "is gone" in attach.ended(run, write(run, pid=process.pid))
    process.wait()


def test_an_attempt_that_has_only_the_lock_yet(run: Path, living: int, dead: int) -> None:
    """Between its start and its first step the status is still that of the attempt before."""
    for fields in ({"state": "stopped"}, {"state": "running"}, {"state": "failed"}):
        status = write(run, pid=dead, **fields)
        hold(run, living)
        assert attach.ended(run, status) == ""
        hold(run, dead)
        assert attach.ended(run, status)
    hold(run, living)
    assert "stopped" in attach.ended(run, write(run, pid=living, state="stopped")), "it only has not left yet"
    (run / "lock").write_text("garbage")
    assert attach.ended(run, {})


def test_a_host_that_falls_silent_by_our_clock(
    run: Path, dead: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attach, "SILENCE_SECONDS", 0.3)
    ahead = (datetime.now(timezone.utc) + timedelta(hours=5)).isoformat()
    write(run, pid=dead, host="elsewhere", heartbeat=ahead)
    attach.follow(run)
    assert "no heartbeat came for" in capsys.readouterr().out


def test_the_newest_run_is_taken(run: Path, dead: int) -> None:
    write(run, pid=dead, state="stopped")
    other = run.parent / "newer"
    other.mkdir()
    write(other, pid=dead, state="finished")
    os.utime(run / "status.json", (1, 1))
    assert attach.choose(run.parent, print) == other
    os.utime(other / "status.json", (0, 0))
    assert attach.choose(run.parent, print) == run


def test_no_run(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no run lies in"):
        attach.choose(tmp_path, print)
    assert cli.main(["attach", "--runs_dir", str(tmp_path)]) == 2
    assert cli.main(["attach", "x", "--runs_dir", str(run.parent)]) == 2
    assert "Did you mean: r?" in capsys.readouterr().err


def test_it_waits_for_a_launch_in_the_background(run: Path, dead: int, living: int) -> None:
    write(run, pid=dead, state="stopped")
    program = [sys.executable, "-c", "import time; time.sleep(60)", "launch"]
    said: list[str] = []

    def begin(text: str) -> None:
        said.append(text)
        write(run, pid=living)

    with subprocess.Popen(program) as launch:
        while not command_line(launch.pid):  # for an instant after exec the kernel shows none
            time.sleep(0.01)
        (run.parent / f"launch-20260101-000000-{launch.pid}.log").touch()
        assert attach.choose(run.parent, begin) == run
        assert said == [f"waiting for the run that pid {launch.pid} starts"]
        write(run, pid=dead, state="stopped")
        launch.kill()
        launch.wait()
        assert attach.choose(run.parent, begin) == run
        assert len(said) == 1


def test_a_log_that_begins_or_shrinks(tmp_path: Path) -> None:
    tail = attach.Tail(tmp_path / "train.log")
    assert tail.lines() == []
    (tmp_path / "train.log").write_text("".join(f"{number}\n" for number in range(30)))
    assert len(tail.lines()) == 30, "all of it is new"
    (tmp_path / "train.log").write_text("anew\n")
    assert tail.lines() == ["anew"]
