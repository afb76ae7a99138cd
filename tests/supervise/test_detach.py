"""`pitstop launch --detach`: at once, out of reach of any terminal, and with a log."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervise.fakes import Fake, survivors, until

MakeFake = Callable[[str], Fake]
BODY = """
print("hello from the recipe", flush=True)
note("stdin", os.readlink("/proc/self/fd/0"))
sleep_until("go")
word(restart="person", exit_code=76, state="stopped", reason="STOP")
"""


def detach(one: Fake, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = one.argv("--detach", "--then", f"touch {one.folder}/then", words=words)
    return subprocess.run(argv, cwd=one.folder, env=one.env, capture_output=True, text=True, timeout=10)


@pytest.mark.parametrize("where", ["flag", "variable", "default"])
def test_it_returns_at_once_and_goes_on(where: str, fake: MakeFake) -> None:
    one = fake(BODY)
    words = ("--runs_dir", "there", "--name", "r") if where == "flag" else ()
    if where == "variable":
        one.env["PITSTOP_RUNS_DIR"] = str(one.folder / "there")
    begun = time.monotonic()
    done = detach(one, *words)
    assert time.monotonic() - begun < 3
    assert done.returncode == 0, done.stderr
    folder = one.folder / ("runs" if where == "default" else "there")
    (log,) = folder.glob("launch-*.log")
    pid = int(re.findall(r"^pid (\d+)", done.stdout)[0])
    assert re.fullmatch(rf"launch-\d{{8}}-\d{{6}}-{pid}\.log", log.name)
    assert str(log) in done.stdout
    assert f"pitstop attach{' r' * (where == 'flag')} --runs_dir " in done.stdout
    one.wait_for("stdin")
    state, parent, _, session, terminal = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:5]
    assert state in "SR"
    assert int(parent) not in (os.getpid(), pid)
    assert int(session) not in (os.getsid(0), pid), "its leader could be given a terminal"
    assert terminal == "0"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)} == {str(log)}
    assert one.read("stdin") == "/dev/null\n"
    (one.folder / "go").touch()
    until(lambda: one.exists("then") and not Path(f"/proc/{pid}").exists(), "its end")
    assert "hello from the recipe" in log.read_text()
    assert "STOP (exit code 76)" in log.read_text()


def test_nobody_reads_where_it_went(fake: MakeFake) -> None:
    """The first process must not take that for an error: its --then would end the machine under the run."""
    one = fake(BODY)
    reading, writing = os.pipe()
    os.close(reading)
    process = one.start("--detach", "--then", f"touch {one.folder}/then", stdout=writing)
    os.close(writing)
    assert process.wait(10) == 0
    one.wait_for("stdin")
    assert not one.exists("then")
    (one.folder / "go").touch()
    one.wait_for("then")
    until(lambda: not survivors(one.mark), "its end")


def test_what_is_wrong_is_said_before(fake: MakeFake) -> None:
    one = fake("attempt()")
    (one.folder / "file").touch()
    for argv, said in (
        ([*one.argv("--detach")[:-1], "nowhere.py"], "RECIPE nowhere.py: there is no such file"),
        (one.argv("--detach", words=("--runs_dir", "file/x")), "cannot be made"),
        (one.argv("--detach", "--processes", "0"), "--processes 0"),
    ):
        done = subprocess.run(argv, cwd=one.folder, env=one.env, capture_output=True, text=True, timeout=10)
        assert done.returncode == 2
        assert said in done.stderr
    assert not one.exists("attempts")
    assert not one.exists("runs")
