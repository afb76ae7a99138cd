"""The program `pitstop`: quick, light, and `archive` moves a run but never from under a living process."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

import pitstop
from pitstop import cli
from pitstop.archive import archive
from pitstop.errors import RunInUseError, UserError

PROGRAM = Path(sys.executable).with_name("pitstop")
HOLDER = """
import fcntl, json, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(descriptor, fcntl.LOCK_EX)
facts = {"pid": os.getpid(), "host": "box", "since": "noon", "boot_id": ""}
os.pwrite(descriptor, json.dumps(facts).encode(), 0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory `runs` with one run `digits-1`, below the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PITSTOP_RUNS_DIR", raising=False)
    run = tmp_path / "runs" / "digits-1"
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "checkpoints" / "step-00000010" / "state.safetensors").write_bytes(b"weights")
    return tmp_path / "runs"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def usage_code(*given: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(given)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_and_version() -> None:
    for given, said in (("--help", "launch"), ("-h", "archive"), ("--version", f"pitstop {pitstop.__version__}\n")):
        done = subprocess.run([PROGRAM, given], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout


def test_help_is_quick() -> None:
    """In seconds of a processor: that others use it as well is not the program's fault."""

    def measured() -> float:
        before = os.times()
        subprocess.run([PROGRAM, "--help"], check=True, capture_output=True, timeout=30)
        return sum(os.times()[2:4]) - sum(before[2:4])  # of children: user, system

    assert min(measured() for _ in range(3)) < 0.4


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
import pitstop
before = set(sys.modules)
assert not any(name.startswith("pitstop.") for name in before), "import pitstop must pull nothing"
from pitstop import cli
assert cli.main(["--help"]) == 0
print("heavy:", *sorted({"torch", "pydantic", "fire", "numpy", "wandb"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a command was expected"),
        (["arhive"], "did you mean archive?"),
        (["--archive"], "did you mean archive?"),
        (["lanch"], "did you mean launch?"),
        (["staus"], "did you mean status?"),
        (["doctr"], "did you mean doctor (not there yet)?"),
        (["qqqqq"], "there is no command 'qqqqq'"),
        *([[command], f"the command {command} is not there yet"] for command in cli.LATER),
    ],
)
def test_wrong_commands_end_with_2(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(given) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_flags_of_archive(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_code("archive") == 2
    assert "RUN is missing" in capsys.readouterr().err
    assert usage_code("archive", "digits-1", "--runs_di", "x", "more") == 2
    err = capsys.readouterr().err
    assert "did you mean --runs_dir?" in err
    assert "more: this word belongs to no flag" in err
    assert usage_code("archive", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: pitstop archive RUN ")
    assert not (runs / "archive").exists()


@pytest.mark.parametrize(
    "given", [["digits-1"], ["runs/digits-1"], ["runs/digits-1/"], ["--runs_dir", "runs", "digits-1"]]
)
def test_archive_moves_all_of_it(runs: Path, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before, inode = contents(runs / "digits-1"), (runs / "digits-1").stat().st_ino
    assert cli.main(["archive", *given]) == 0
    assert not (runs / "digits-1").exists()
    (moved,) = (runs / "archive").iterdir()
    assert moved.stat().st_ino == inode, "it was copied"
    assert contents(moved) == before
    assert str(moved) in capsys.readouterr().out
    assert time.strptime(moved.name, "digits-1-%Y%m%d-%H%M%S")


def test_archive_by_path_stays_beside_the_run(runs: Path, tmp_path: Path) -> None:
    assert cli.main(["archive", str(runs / "digits-1"), "--runs_dir", str(tmp_path / "elsewhere")]) == 0
    assert len(list((runs / "archive").iterdir())) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_two_in_one_second_both_survive(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Noon":
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr("pitstop.archive.datetime", Noon)
    for text in ("first", "second"):
        run = runs / "digits-1"
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(text)
        archive(run)
    moved = {path.name: (path / "config.json").read_text() for path in (runs / "archive").iterdir()}
    assert moved == {"digits-1-20260102-120000": "first", "digits-1-20260102-120000-2": "second"}


def test_a_run_in_use_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs)
    command = [sys.executable, "-c", HOLDER, str(runs / "digits-1" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert cli.main(["archive", "digits-1"]) == 75
        finally:
            holder.kill()
    assert str(holder.pid) in capsys.readouterr().err
    assert contents(runs) == before
    assert json.loads((runs / "digits-1" / "lock").read_text())["pid"] == holder.pid
    assert cli.main(["archive", "digits-1"]) == 0, "the lock of a killed process must not stay"


def test_the_lock_is_released_where_the_move_fails(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    class Watched:
        def __init__(self, run: Path) -> None:
            self.run = run

        def acquire(self, wait_seconds: float) -> None:
            said.append(f"acquire {self.run.name} {wait_seconds}")

        def release(self) -> None:
            said.append("release")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pitstop.archive.Lock", Watched)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        archive(runs / "digits-1")
    assert said == ["acquire digits-1 0", "release"]


def test_what_is_no_run_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "notes").mkdir()
    (runs / "link").symlink_to(runs / "digits-1")
    for name, said in {
        "digits-2": "Did you mean: digits-1?",
        "notes": "there is no config.json",
        "link": "is a link",
        "..": "is no run",
    }.items():
        assert cli.main(["archive", name]) == 2, name
        assert said in capsys.readouterr().err
    assert cli.main(["archive", "digits-1"]) == 0
    (moved,) = (runs / "archive").iterdir()
    assert cli.main(["archive", str(moved)]) == 2
    assert "lies in an archive already" in capsys.readouterr().err
    assert cli.main(["archive", "digits-1", "--runs_dir", "nowhere"]) == 2
    assert "No run lies in nowhere" in capsys.readouterr().err


def test_run_in_use_is_a_code_to_start_again() -> None:
    assert RunInUseError("x").exit_code == 75


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_has_a_help(name: str) -> None:
    done = subprocess.run([PROGRAM, name, "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pitstop {name}" in done.stdout
