"""Reasons to stop: which outweighs which, when it is at once, and who is a launcher. In processes of their own, which
real signals reach."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pitstop import stopper
from pitstop.errors import PERSON_DECIDES, START_AGAIN
from pitstop.launcher import is_launcher
from pitstop.notice import Notice
from pitstop.stopper import Limit, Stopper, stop_file, time_limit


@pytest.fixture
def installed() -> Iterator[Stopper]:
    stop = Stopper()
    stop.install()
    yield stop
    stop.uninstall()


def send(number: int) -> None:
    """A signal that has been handled when it returns."""
    signal.raise_signal(number)


@pytest.mark.parametrize("armed", [False, True])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, START_AGAIN), (signal.SIGUSR1, START_AGAIN), (signal.SIGINT, PERSON_DECIDES)],
)
def test_signals(number: signal.Signals, code: int, armed: bool, installed: Stopper) -> None:
    """Before `arm` at once, after it a flag."""
    if not armed:
        with pytest.raises(SystemExit) as left:
            send(number)
        assert left.value.code == code
        assert installed.seconds_left <= 3
        return
    installed.arm()
    send(number)
    assert (installed.look(), installed.reason) == (code, number.name)
    assert 20 < installed.seconds_left <= 25


def test_a_second_interrupt_is_at_once_and_a_second_sigterm_is_not(installed: Stopper) -> None:
    installed.arm()
    for _ in range(3):
        send(signal.SIGTERM)
    assert installed.look() == START_AGAIN
    send(signal.SIGINT)
    assert (installed.look(), installed.reason) == (PERSON_DECIDES, "SIGINT")
    send(signal.SIGTERM)
    assert (installed.look(), installed.reason) == (PERSON_DECIDES, "SIGINT")
    with pytest.raises(SystemExit) as left:
        send(signal.SIGINT)
    assert left.value.code == PERSON_DECIDES
    assert installed.seconds_left <= 3


def test_a_first_interrupt_saves_whatever_was_asked_before(installed: Stopper) -> None:
    """A person has asked by a file, and then types Ctrl-C once."""
    installed.arm()
    installed.request("STOP is there", PERSON_DECIDES)
    send(signal.SIGINT)
    assert installed.look() == PERSON_DECIDES


def test_the_launcher_says_how_long_a_signal_leaves(installed: Stopper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITSTOP_GRACE_SECONDS", "295")
    installed.arm()
    send(signal.SIGTERM)
    assert 290 < installed.seconds_left <= 295


def test_signals_end_a_process_that_waits_and_are_handled_again_after_an_error(installed: Stopper) -> None:
    with contextlib.suppress(ValueError), installed.waiting():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        raise ValueError
    installed.arm()
    send(signal.SIGTERM)
    assert installed.look() == START_AGAIN


WAITS = """
    import ctypes, os, signal, sys, time
    from pitstop.launcher import hangups
    from pitstop.stopper import Stopper
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    place = sys.argv[1]
    before = sorted(os.listdir("/proc/self/fd"))
    stopper = Stopper()
    stopper.install(lambda: os.write(1, b"hung up "))
    if place == "armed":
        stopper.arm()
    try:
        if place == "before":
            hangups.append(signal.SIGHUP)
            os.write(1, b"waits ")
            stopper.heed_hangup()
        if place == "C":
            with stopper.waiting():
                mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
                lock(mutex)
                os.write(1, b"waits ")
                lock(mutex)  # as torch does: for ever, and in C
        os.write(1, b"waits ")
        while not stopper.exit_code:
            time.sleep(0.01)
        time.sleep(0.2)  # all that was sent has come
    finally:
        stopper.uninstall()
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.write(1, stopper.reason.encode())
    sys.exit(stopper.exit_code)
"""


@pytest.mark.parametrize(
    ("place", "numbers", "said"),
    [
        ("C", [signal.SIGHUP], "hung up "),
        ("C", [signal.SIGHUP, signal.SIGTERM], "hung up "),
        ("C", [signal.SIGTERM], ""),
        ("Python", [signal.SIGHUP], "hung up "),
        ("Python", [signal.SIGTERM], ""),
        ("before", [], "hung up "),
        ("armed", [signal.SIGHUP], "hung up SIGHUP"),
        ("armed", [signal.SIGHUP, signal.SIGTERM], "hung up SIGHUP"),
        ("armed", [signal.SIGTERM], "SIGTERM"),
        ("armed", [signal.SIGTERM, signal.SIGHUP], "SIGTERM"),
    ],
)
def test_a_hangup_under_an_agent(place: str, numbers: list[signal.Signals], said: str) -> None:
    """It is heard at once, wherever the main thread is, and once; unless somebody wanted a stop before."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITS), place],
        bufsize=0,  # `communicate` does not see what a buffer holds
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        heard = process.stdout.read(6)
        time.sleep(0.1)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.001)
        heard += process.communicate(timeout=20)[0]
    finally:
        process.kill()
    assert (heard.decode(), process.returncode) == (f"waits {said}", START_AGAIN)


RANK = """
    import os, signal, sys, time
    from pitstop import listener, stopper
    from pitstop.launcher import hangups, note_hangups, terminal_closed
    place, stopper.HANGUP_SECONDS, listener.LOOK_SECONDS = sys.argv[1], float(sys.argv[2]), 0.05
    note_hangups()
    print(os.getpid(), flush=True)
    if place == "imports":
        while not hangups:
            time.sleep(0.01)
    if place == "between":
        while not terminal_closed():
            time.sleep(0.01)
    stop = stopper.Stopper()
    stop.install(lambda: print("hung up", flush=True))
    print("installed", flush=True)
    try:
        if place == "between":
            signal.raise_signal(signal.SIGTERM)
        if place == "armed":
            stop.arm()
        stop.heed_hangup()
        while not stop.exit_code:
            time.sleep(0.01)
        print(stop.reason, flush=True)
    finally:
        stop.uninstall()
"""
AGENT = """
    import os, subprocess, sys
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    sys.exit(subprocess.run(sys.argv[1:], start_new_session=True).returncode)
"""


@pytest.mark.parametrize(
    ("place", "before", "said", "code"),
    [
        ("armed", "closed", ["hung up", "SIGHUP"], 0),
        ("armed", "open", ["SIGTERM"], 0),
        ("armed", "closed long ago", ["SIGTERM"], 0),
        ("armed", "killed", [], -signal.SIGKILL),
        ("slow", "closed", ["hung up"], START_AGAIN),
        ("slow", "closed long ago", [], START_AGAIN),
        ("imports", "closed", ["hung up"], START_AGAIN),
        ("imports", "open", [], -signal.SIGTERM),
        ("imports", "killed", [], -signal.SIGKILL),
        ("between", "closed", ["hung up"], START_AGAIN),
    ],
)
def test_what_sigterm_of_an_agent_means(place: str, before: str, said: list[str], code: int, tmp_path: Path) -> None:
    """The end of its terminal, where that has just been closed: told twice, torchrun sends SIGTERM. In an agent of that
    name that leads the session of a real terminal, and does not hear SIGHUP."""
    agent = tmp_path / "torchrun"
    agent.write_text(textwrap.dedent(AGENT))
    seconds = "0.5" if before == "closed long ago" else "20"
    rank = [sys.executable, "-c", textwrap.dedent(RANK), place, seconds]
    master, slave = os.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, str(agent), *rank],
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        if place not in ("imports", "between"):
            assert process.stdout.readline() == b"installed\n"
        if "closed" in before:
            os.close(master)
        if before == "closed long ago":
            time.sleep(1.5)
        if before == "killed":
            process.kill()
            process.wait()
        if place != "between":
            time.sleep(0.1)
            os.kill(pid, signal.SIGTERM)
        heard = process.communicate(timeout=20)[0].decode().split("\n")[:-1]
    finally:
        process.kill()
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        if "closed" not in before:
            os.close(master)
    reasons = {"SIGTERM", "the launcher has died"} if before == "killed" else set()  # whichever comes first
    assert sorted(set(heard) - {"installed"} - reasons) == sorted(said), heard
    assert process.returncode == (code if before == "killed" else code % 256)


@pytest.mark.parametrize("armed", [False, True])
def test_a_hangup_means_nothing(armed: bool, installed: Stopper, monkeypatch: pytest.MonkeyPatch) -> None:
    if armed:
        installed.arm()
    send(signal.SIGHUP)
    assert installed.look_now() == 0
    monkeypatch.setattr(stopper, "TOGETHER_SECONDS", 0.01)
    send(signal.SIGUSR2)  # the launcher died of the same hangup
    assert installed.look_now() == 0


def test_a_launcher_that_dies_long_after_a_hangup(installed: Stopper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopper, "TOGETHER_SECONDS", 0.01)
    monkeypatch.setattr(stopper, "HANGUP_SECONDS", 0.05)
    installed.arm()
    send(signal.SIGHUP)
    time.sleep(0.1)
    send(signal.SIGUSR2)
    assert (installed.look(), installed.reason) == (START_AGAIN, "the launcher has died")


def test_a_hangup_that_comes_just_after_the_death(installed: Stopper) -> None:
    """The kernel may tell of the launcher's death before the hangup that caused it has come."""
    installed.arm()
    later = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -HUP {os.getpid()}"])
    send(signal.SIGUSR2)
    later.wait()
    assert installed.look_now() == 0


def test_under_an_agent_a_hangup_is_a_wish_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun passes SIGHUP on and kills 30 s later; `pitstop launch` does not."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for outcome, code in (("", START_AGAIN), ("/tmp/outcome", 0)):
        if outcome:
            monkeypatch.setenv("PITSTOP_OUTCOME", outcome)
        stop = Stopper()
        stop.install()
        stop.arm()
        send(signal.SIGHUP)
        assert stop.look() == code
        send(signal.SIGTERM)  # but this is one
        stop.uninstall()
        assert stop.look() == START_AGAIN


def test_handlers_are_put_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    stop = Stopper()
    stop.install()
    assert [signal.getsignal(number) for number in numbers] != before
    stop.uninstall()
    assert [signal.getsignal(number) for number in numbers] == before


LEAVES = """
    import atexit, signal, subprocess, sys
    from pitstop.stopper import Stopper

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    atexit.register(lambda: print([signal.getsignal(number) is signal.SIG_IGN for number in NUMBERS]))
    stop = Stopper()
    stop.install()
    stop.leave()
    signal.raise_signal(signal.SIGTERM)
    stop.uninstall()
    for number in NUMBERS:
        signal.raise_signal(number)
    with subprocess.Popen(["sleep", "60"]) as child:
        child.terminate()
    print(child.returncode)
    print(signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
    sys.exit(75)
"""


def test_a_process_that_leaves_is_ended_by_ctrl_c_and_by_its_launchers_death_alone() -> None:
    """To its very end; what it starts meanwhile hears all."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(LEAVES)], stdout=subprocess.PIPE, text=True)
    assert done.stdout.split("\n") == ["-15", "True", "interrupted", str([True] * 3), ""]
    assert done.returncode == START_AGAIN


def test_a_failure_is_a_stop_only_where_a_handler_has_ended_the_process(installed: Stopper) -> None:
    """A file STOP ends nothing by itself: what fails meanwhile has failed."""
    installed.request("a file STOP", PERSON_DECIDES)
    installed.leave_if_asked(wait=False)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        installed.leave_if_asked(wait=True)
    installed.arm()
    installed.leave_if_asked(wait=True)  # there is something to lose


def test_a_person_outweighs_a_machine() -> None:
    stop = Stopper()
    stop.request("a cloud", START_AGAIN)
    stop.request("another cloud", START_AGAIN)
    assert (stop.exit_code, stop.reason) == (START_AGAIN, "a cloud"), "the first reason is the reason"
    stop.request("a person", PERSON_DECIDES)
    stop.request("a cloud", START_AGAIN)
    assert (stop.exit_code, stop.reason) == (PERSON_DECIDES, "a person")


def test_the_nearest_deadline_counts() -> None:
    stop, now = Stopper(), time.monotonic()
    assert stop.seconds_left is None, "nobody has named one"
    stop.request("a", START_AGAIN, now + 120)
    stop.request("b", START_AGAIN, now + 30)
    stop.request("c", START_AGAIN, now + 60)
    assert stop.seconds_left == pytest.approx(30, abs=1)
    stop.request("d", START_AGAIN, now - 1)
    assert stop.seconds_left == 0


def test_notices() -> None:
    stop = Stopper()
    stop.arm()
    stop.notice(Notice("may be taken", stops=False))
    assert (stop.exit_code, stop.save_soon) == (0, True)
    stop.notice(Notice("is taken", deadline=time.monotonic() + 50))
    assert (stop.exit_code, stop.reason) == (START_AGAIN, "is taken")
    assert stop.seconds_left == pytest.approx(50, abs=1)


def test_limits_are_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, looks, clock = Stopper(), [], [stopper.time.monotonic()]
    monkeypatch.setattr(stopper.time, "monotonic", lambda: clock[0])
    stop.watch(Limit(lambda: looks.append(clock[0]) or "", PERSON_DECIDES))
    for _ in range(100):
        clock[0] += 0.1
        assert stop.look() == 0
    assert 8 <= len(looks) <= 10
    stop.watch(Limit(lambda: "enough", PERSON_DECIDES))
    assert stop.look_now() == PERSON_DECIDES
    assert stop.reason == "enough"


def test_time_limit() -> None:
    age = [0.0]
    limit = time_limit(0.5, lambda: age[0])
    for age[0], over in ((0, False), (1799.9, False), (1800.0, True)):
        assert limit.check() == ("--max_hours 0.5 are over" if over else "")
    assert limit.exit_code == START_AGAIN
    age[0] = 1e9
    assert time_limit(0, lambda: age[0]).check() == "", "0: never"


def test_stop_file(tmp_path: Path) -> None:
    limit = stop_file(tmp_path)
    assert limit.check() == ""
    (tmp_path / "STOP").touch()
    assert str(tmp_path / "STOP") in limit.check()
    assert limit.exit_code == PERSON_DECIDES
    assert stop_file(tmp_path / "not there").check() == ""


CHILD = """
    import os, signal, sys, time
    from pitstop.stopper import Stopper
    stop = Stopper()
    stop.install()
    stop.arm()
    print(os.getpid(), flush=True)
    deadline = time.monotonic() + {seconds}
    while not stop.look() and time.monotonic() < deadline:
        time.sleep(0.01)
    open(sys.argv[1], "w").write(f"{{stop.exit_code}} {{stop.reason}}")
"""


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("accelerate", True),
        ("torchrun", True),
        ("pitstop", True),
        ("bash", False),
        ("accelerate.sh", False),
        ("my-scheduler", False),
    ],
)
def test_who_is_a_launcher(name: str, launcher: bool, tmp_path: Path) -> None:
    """A program of that name starts a child and is killed: only a launcher's death is a wish to stop."""
    child, parent, said = tmp_path / "child.py", tmp_path / name, tmp_path / "said"
    child.write_text(textwrap.dedent(CHILD.format(seconds=10 if launcher else 1.0)))
    parent.write_text("import subprocess, sys\nsubprocess.Popen(sys.argv[1:]).wait()\n")
    command = [sys.executable, str(parent), sys.executable, str(child), str(said)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    wait_for(lambda: said.exists() and said.read_text() and not Path(f"/proc/{pid}/exe").exists())
    assert said.read_text() == (f"{START_AGAIN} the launcher has died" if launcher else "0 ")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        (["/usr/bin/python3", "/venv/bin/accelerate", "launch", "x.py"], True),
        (["python", "-m", "accelerate.commands.launch", "x.py"], True),
        (["python", "-m", "torch.distributed.run", "x.py"], True),
        (["python", "-m", "pitstop.cli", "launch"], True),
        (["/usr/bin/pitstop", "launch"], True),
        (["bash", "-c", "accelerate launch x.py"], False),
        (["python", "train.py", "--name", "accelerate"], False),
        (["tmux"], False),
        ([""], False),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "x.py"], True),
    ],
)
def test_by_its_command_line(words: list[str], launcher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: "\0".join([*words, ""]).encode())
    assert is_launcher(1) == launcher
