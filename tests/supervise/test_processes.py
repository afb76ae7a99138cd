"""The process table as /proc has it."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from supervise.fakes import until

from pitstop.supervise.processes import begin_child, catches, descendants

TREE = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)  # stays a zombie: nobody waits for it
    open("/proc/self/comm", "w").write("a) R 1 (b")
    time.sleep(60)
time.sleep(60)
"""


def test_descendants_are_found_by_their_parents() -> None:
    with subprocess.Popen([sys.executable, "-c", TREE]) as process:
        until(lambda: "a) R 1 (b" in [found.name for found in descendants(process.pid)], "the tree")
        (child,) = descendants(process.pid)
        assert child.parent == process.pid
        mine = {found.pid: found.parent for found in descendants(os.getpid())}
        assert mine[process.pid] == os.getpid()
        assert mine[child.pid] == process.pid
        os.kill(child.pid, signal.SIGKILL)
        process.kill()
    assert process.pid not in {found.pid for found in descendants(os.getpid())}


def test_handlers_are_seen() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert catches(os.getpid(), signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert not catches(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not Path(f"/proc/{gone.pid}").exists()
    assert not catches(gone.pid, signal.SIGTERM)


def test_a_child_hears_what_its_parent_was_told_to_ignore() -> None:
    """A script's `&` has SIGINT ignored, which a program passes on to all that it starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(["sleep", "60"], preexec_fn=partial(begin_child, os.getpid()))
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == -signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
        child.kill()
        child.wait()
