"""A terminal that closes, a reader that leaves, a launcher that dies: under the real `accelerate launch`, and without.

A closed terminal never ends a run; a launcher that dies alone does, with a checkpoint, for its own restart would else
meet an orphan.
"""

import contextlib
import errno
import fcntl
import os
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import TINY, Job, Run, assert_same
from faults.holding import steps, stopped
from faults.warm import free_port

LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1", "--num_machines", "1"]
BASH = ["bash", "--norc", "-i"]
SHELLS = {"none": None, "leaves": "", "lingers": "trap /bin/true EXIT\n"}  # so that its SIGHUP and the kernel's are two
SETTLE_SECONDS = 3.0
SLOW = {"STEP_SECONDS": "0.15"}
ONE_THREAD = {"LOCAL_WORLD_SIZE": str(os.cpu_count())}  # as the clean run has


def words(program: list[str]) -> list[str]:
    """tiny.py by a real interpreter."""
    return [sys.executable, *program, str(TINY), "--name", "r", "--tracker", "none", "--precision", "fp32"]


def start(run: Run, command: list[str], *, terminal: int | None = None, **env: str) -> subprocess.Popen[bytes]:
    """A program in a session of its own, on a terminal or with its output in out.txt."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "STEP_LOG": str(run.folder / "steps.jsonl"),
        **ONE_THREAD,
        **run.env,
        **env,
    }
    with open(run.folder / "out.txt", "ab") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        if terminal is not None:
            streams = dict.fromkeys(streams, terminal)

        def own_terminal() -> None:
            if terminal is not None:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return subprocess.Popen(
            command, cwd=run.folder, env=environment, start_new_session=True, preexec_fn=own_terminal, **streams
        )


def trains(run: Run, more: int = 3) -> int:
    """Waits until `more` steps are computed. Returns the pid of the process that computes."""
    goal, deadline = steps(run) + more, time.monotonic() + 120
    while steps(run) < goal:
        assert time.monotonic() < deadline, (run.folder / "out.txt").read_text()
        time.sleep(0.02)
    return int(str(run.status()["pid"]))


def state(pid: int) -> str:
    """By the process table; empty: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def ends(pid: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while state(pid) not in ("", "Z"):
        assert time.monotonic() < deadline, f"process {pid} survives"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["begin", "step:5"])
def test_a_terminal_that_closes(
    before: str, tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path
) -> None:
    """As sshd does it: the other side closes. The launcher dies of SIGHUP, the recipe gets SIGHUP and EIO, and ends."""
    run, hold = tiny(), tmp_path / "hold"
    master, slave = os.openpty()
    launcher = start(run, words(LAUNCH), terminal=slave, HOLD_AT=before, HOLD=str(hold))
    os.close(slave)
    os.set_blocking(master, False)
    wait_for(Path(f"{hold}.held"))
    if before != "begin":  # nothing is known of the run then
        assert run.status()["pid"] != launcher.pid
        assert b"attempt 1 begins at step 0" in os.read(master, 1 << 16)
    os.close(master)
    assert launcher.wait(30) == -signal.SIGHUP
    Path(f"{hold}.go").touch()
    wait_for(run.folder / "runs" / "r" / "status.json")
    ends(int(str(run.status()["pid"])))
    assert run.status()["state"] == "finished", run.log()
    assert run.status()["attempt"] == 1
    assert_same(run, clean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "rank", "shell"),
    [
        ("step:5", 0, "lingers"),
        ("begin", 0, "lingers"),
        pytest.param("begin", 1, "lingers", marks=pytest.mark.long),
        *(pytest.param("restored", 0, shell, marks=pytest.mark.long) for shell in SHELLS),
        *(
            pytest.param(before, rank, shell, marks=pytest.mark.long)
            for before, rank in (("begin", 0), ("begin", 1), ("step:5", 0))
            for shell in ("none", "leaves")
        ),
    ],
)
def test_a_terminal_that_closes_with_several_ranks(
    before: str, rank: int, shell: str, tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path
) -> None:
    """torchrun's agent takes that for a wish to stop: they save and leave, and the same command goes on elsewhere. Also
    while one of them still imports, and the other waits for it in C++. A shell tells the end of a terminal once more:
    the agent then sends SIGTERM, after SIGHUP or instead of it."""
    run, hold = tiny(), tmp_path / "hold"
    master, slave = os.openpty()
    several = [*LAUNCH[:2], "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    several += ["--main_process_port", str(free_port())]
    held = {"HOLD_AT": before, "HOLD": str(hold), "KILL_RANK": str(rank)}
    typed = SHELLS[shell]
    first = start(run, words(several) if typed is None else BASH, terminal=slave, **held)
    os.close(slave)
    os.set_blocking(master, False)
    if typed is not None:
        os.write(master, f"{typed}{shlex.join(words(several))} 2>/dev/null\n".encode())
    wait_for(Path(f"{hold}.held"))
    (other,) = (pid for pid in processes_of(run) if environment_of(pid).get("RANK") == str(1 - rank))
    if before == "begin":
        time.sleep(SETTLE_SECONDS)  # it waits in C++ for the one that is held
    os.close(master)
    closed = time.monotonic()
    if before == "begin":
        ends(other, 15)
    Path(f"{hold}.go").touch()
    first.wait(60)
    wait_for(run.folder / "runs" / "r" / "status.json")
    finished(run, 60)
    (log,) = (run.folder / "runs").glob("launch-*.log")
    assert run.status()["attempt"] == (1 if before == "begin" and rank == 0 else 2)
    assert [event["reason"] for event in run.events("stopped")] == ["SIGHUP"] * (before != "begin")
    assert "attempt" in log.read_text()
    for pid in processes_of(run):
        ends(pid)
    assert time.monotonic() < closed + 60
    assert_same(run, clean(ranks=2))


def environment_of(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        return dict(variable.split("=", 1) for variable in variables if "=" in variable)
    return {}


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def finished(run: Run, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while run.status().get("state") != "finished":
        logs = (run.folder / "runs").glob("launch-*.log")
        assert time.monotonic() < deadline, "\n".join([run.log(), *map(Path.read_text, logs)])
        time.sleep(0.05)


def processes_of(run: Run) -> list[int]:
    """Those that have the run's folder as their own."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if state(int(name)) != "Z" and Path(f"/proc/{name}/cwd").readlink() == run.folder:
                found.append(int(name))
    return found


@pytest.mark.slow
def test_a_launcher_that_dies_alone(tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path) -> None:
    """By SIGTERM, of which it passes nothing on; the kernel tells the recipe, which saves and leaves: no orphan trains
    on, unpaid for. By SIGKILL: tests/faults/test_launch.py."""
    run, hold = tiny(), tmp_path / "hold"
    launcher = start(run, words(LAUNCH), HOLD_AT="step:5", HOLD=str(hold))
    pid = trains(run, 5)
    launcher.terminate()
    launcher.wait(30)
    Path(f"{hold}.go").touch()
    ends(pid, 30)
    status = stopped(run, "now")
    assert status["reason"] == "the launcher has died"
    assert 5 <= int(str(status["step"])) < 26
    assert f"step-{status['step']:08d}" in run.checkpoints()
    assert [event["exit_code"] for event in run.events("stopped")] == [75]
    run.finish()
    assert_same(run, clean())


@pytest.mark.slow
def test_nohup_and_a_shell_that_leaves(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """A shell is no launcher: the recipe outlives it, and SIGHUP."""
    run = tiny()
    script = f'nohup "$0" "$@" > {run.folder}/nohup.txt 2>&1 & sleep 0.2'
    shell = subprocess.Popen(
        ["sh", "-c", script, sys.executable, str(TINY), "--name", "r", "--tracker", "none", "--precision", "fp32"],
        cwd=run.folder,
        env=os.environ
        | {"STEP_LOG": str(run.folder / "steps.jsonl"), "CUDA_VISIBLE_DEVICES": "", **ONE_THREAD, **SLOW},
        start_new_session=True,
    )
    assert shell.wait(60) == 0
    pid = trains(run)
    os.kill(pid, signal.SIGHUP)
    ends(pid)
    assert run.status()["state"] == "finished", run.log()
    assert_same(run, clean())


def test_a_reader_that_leaves(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """stdout and stderr are a pipe (`| head`): EPIPE, in print, in tqdm, in a signal handler, in the last flush."""
    run = tiny("--log_every", "1")
    pipe = run.folder / "out-1.txt"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    job = run.start(STEP_SECONDS="0.05")
    unlink_when_open(run, job, pipe)
    assert b"attempt 1 begins" in os.read(reader, 1 << 16)
    os.close(reader)
    job.wait()
    assert job.codes == [0]
    assert run.status()["state"] == "finished"
    assert_same(run, clean("--log_every", "1"))
    assert "step 26  epoch" in run.log()


def unlink_when_open(run: Run, job: Job, path: Path) -> None:
    """Whoever opens it again (`Job.text`, for a message) would be a reader, and wait."""
    while steps(run) < 3:
        assert not job.over.wait(0.01), job.codes
    path.unlink()


@pytest.mark.parametrize("stop", [False, True])
def test_a_terminal_that_is_gone(stop: bool, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """EIO, without any signal: a live bar writes there all the time. A stop still works, and says so in train.log."""
    run = tiny("--log_every", "1")
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # tqdm shows nothing on no columns
    (run.folder / "out-1.txt").symlink_to(os.ttyname(slave))
    job = run.start(STEP_SECONDS="0.05")
    unlink_when_open(run, job, run.folder / "out-1.txt")
    seen = b""
    while b"step/s" not in seen:  # the live bar
        assert select.select([master], [], [], 10)[0], seen
        seen += os.read(master, 1 << 16)
    os.close(slave)
    os.close(master)
    time.sleep(0.2)
    if stop:
        job.signal(signal.SIGTERM)
    job.wait()
    assert job.codes == [75 if stop else 0]
    if stop:
        assert stopped(run, "now")["reason"] == "SIGTERM"
        assert "stopped at step" in run.log()
        run.finish()
    assert_same(run, clean("--log_every", "1"))


def test_the_terminal_of_the_tests_behaves_as_a_closed_one() -> None:
    """The oracle: what a write to it gives."""
    master, slave = os.openpty()
    os.close(master)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(slave, b"x")
    os.close(slave)
