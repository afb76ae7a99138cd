"""The bar under a real terminal (a pty); lines elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest

from pitstop.record import progress
from pitstop.record.progress import Progress

STEPS = """
import time
from pitstop.record.progress import Progress
bar = Progress(3, 40, shown=SHOWN)
for step in range(4, 41):
    time.sleep(0.01)
    bar.step()
    if step % 10 == 0:
        bar.row(step, f"loss {1 / step:.4f}", "9s")
bar.say("saved step 40")
bar.close()
print("the end")
"""


def program(shown: bool = True) -> list[str]:
    return [sys.executable, "-W", "error", "-c", STEPS.replace("SHOWN", str(shown))]


def under_a_terminal(command: list[str]) -> str:
    """What a person would see, raw."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    pieces: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # EIO: the last writer has gone
                return
            if not data:
                return
            pieces.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    assert child.wait(60) == 0
    reader.join(10)
    os.close(leader)
    return b"".join(pieces).decode()


def test_a_terminal_has_a_bar_that_lives() -> None:
    seen = under_a_terminal(program())
    states = [part for part in seen.split("\r") if "/40 [" in part]
    counts = [int(part.split("/40 [")[0].split("|")[-1]) for part in states]
    assert counts[0] == 3, "it begins where the run was left"
    assert len(set(counts)) > 3, "it moves"
    assert counts == sorted(counts)
    assert any("loss 0.0" in part for part in states)
    assert "saved step 40" in seen
    assert seen.rstrip().endswith("the end")
    assert "step 10/40" not in seen, "no plain lines beside the bar"


def test_a_file_gets_plain_lines() -> None:
    done = subprocess.run(program(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = ["step 10/40  loss 0.1000  9s left", "step 40/40  loss 0.0250  9s left", "saved step 40", "the end"]
    assert done.stdout.splitlines() == lines


def test_lines_come_every_ten_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = Progress(0, 100, shown=True)
    for step in range(1, 101):
        clock[0] += 3.0
        bar.row(step, "x", "1h")
    bar.close()
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [*range(1, 100, 4), 100]


def test_a_rank_that_shows_nothing() -> None:
    assert under_a_terminal(program(shown=False)).split("\r\n") == ["saved step 40", "the end", ""]


def test_hidden_progress_in_a_file_prints_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(0, 10, shown=False)
    bar.step()
    bar.row(10, "x", "0s")
    bar.close()
    assert capsys.readouterr() == ("", "")
