"""`pitstop launch` around small fake recipes: signals, orphans, restarts, exit codes. Nothing may survive."""

import contextlib
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervise.fakes import Fake, survivors, until

MakeFake = Callable[[str], Fake]

WAITS = """
count = 0
def handle(number, frame):
    global count
    count += 1
    note("signals", signal.Signals(number).name)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, handle)
word()
attempt()
note("ready")
"""
STOPS = (
    WAITS
    + """
while not count:
    time.sleep(0.01)
time.sleep(0.5)
stopped(76 if signal.Signals.SIGINT.name in (FOLDER / "signals").read_text() else 75, "now")
"""
)


@pytest.mark.parametrize(
    ("state", "restart", "code"),
    [("finished", "never", 0), ("stopped", "now", 75), ("stopped", "person", 76), ("failed", "person", 2)],
)
def test_the_word_of_the_recipe_is_the_exit_code(state: str, restart: str, code: int, fake: MakeFake) -> None:
    """The process itself ends with 1, as under accelerate. A spent budget (76) is not tried again either."""
    one = fake(f"attempt(); word(state={state!r}, restart={restart!r}, exit_code={code}, reason='budget'); sys.exit(1)")
    assert one.go("--then", f"echo $PITSTOP_STATE $PITSTOP_RUN > {one.folder}/then") == code
    assert one.attempts == 1
    assert one.read("then") == f"{state} {one.folder}/runs/r\n"


@pytest.mark.parametrize("code", [0, 2])
def test_a_recipe_without_a_run_has_only_its_exit_code(code: int, fake: MakeFake) -> None:
    """Wrong flags, --help, a program that is not ours."""
    one = fake("attempt(); print(sys.argv[1:], os.environ['PITSTOP_OUTCOME']); sys.exit(int(sys.argv[1]))")
    assert one.go(words=(str(code), "--grace", "x", "")) == code
    assert one.attempts == 1
    assert f"['{code}', '--grace', 'x', '']" in one.text, "the recipe's words are its own"


@pytest.mark.parametrize(
    ("sent", "got", "code"),
    [(["TERM", "TERM", "USR1"], ["TERM"], 75), (["USR1"], ["USR1"], 75), (["INT", "INT"], ["INT", "INT"], 76)],
)
def test_a_signal_is_passed_on_once_and_a_second_interrupt_too(
    sent: list[str], got: list[str], code: int, fake: MakeFake
) -> None:
    one = fake(STOPS)
    process = one.start()
    one.wait_for("ready")
    for number, name in enumerate(sent):
        process.send_signal(signal.Signals[f"SIG{name}"])
        expected = got[: number + 1]
        until(
            lambda expected=expected: (
                one.exists("signals") and one.read("signals").split() == [f"SIG{name}" for name in expected]
            ),
            f"{expected}",
        )
        time.sleep(0.05)
    assert one.end(process) == code
    assert one.read("signals").split() == [f"SIG{name}" for name in got]
    assert one.attempts == 1, "after a notice the machine goes away"


def test_a_third_interrupt_kills(fake: MakeFake) -> None:
    one = fake(WAITS + "while True: time.sleep(1)")
    process = one.start()
    one.wait_for("ready")
    for number in range(3):
        process.send_signal(signal.SIGINT)
        until(lambda number=number: one.read("signals").count("INT") >= min(2, number + 1), "the signal")
    assert one.end(process, seconds=5) == 76


def test_loader_workers_get_no_signal(fake: MakeFake) -> None:
    """They are in the recipe's process group; one that dies would break the last save."""
    one = fake(
        WAITS
        + """
worker = os.fork()
if worker == 0:
    signal.signal(signal.SIGTERM, lambda *_: note("worker"))
    note("worker_ready")
    while True:
        time.sleep(0.02)
while not count:
    time.sleep(0.01)
time.sleep(0.3)
note("saved", f"worker got one: {(FOLDER / 'worker').exists()}")
stopped(75, "now")
"""
    )
    process = one.start("--grace", "1s")
    one.wait_for("worker_ready")
    process.send_signal(signal.SIGTERM)
    assert one.end(process) == 75
    assert one.read("saved") == "worker got one: False\n"
    assert one.exists("worker"), "once the recipe is gone it is asked to leave"


@pytest.mark.parametrize("how", ["ignores", "stopped"])
def test_what_does_not_leave_in_time_is_killed(how: str, fake: MakeFake) -> None:
    one = fake("signal.signal(signal.SIGTERM, signal.SIG_IGN); daemon(); word(); note('ready'); time.sleep(60)")
    process = one.start("--grace", "700ms")
    one.wait_for("daemon")
    one.wait_for("ready")
    if how == "stopped":
        recipe = next(
            pid for pid, words in survivors(one.mark).items() if "recipe.py" in words and "launch" not in words
        )
        os.kill(recipe, signal.SIGSTOP)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert one.end(process) == 75
    assert 0.6 < time.monotonic() - begun < 5


@pytest.mark.parametrize("end", ["word(restart='never', exit_code=0, state='finished')", "os.kill(os.getpid(), 9)"])
def test_orphans_end_with_their_recipe(end: str, fake: MakeFake) -> None:
    one = fake(f"daemon(); daemon(); attempt(); {end}")
    code = one.go("--grace", "500ms", "--restarts", "0")
    assert code == (0 if "never" in end else 1)
    assert len(one.read("daemon").split()) == 2


def test_wandb_core_may_finish_but_not_for_ever(fake: MakeFake) -> None:
    one = fake(
        """
script = FOLDER / "wandb-core"
script.write_text('#!/bin/sh\\nsleep ' + sys.argv[1] + f'; touch {FOLDER}/uploaded\\n')
script.chmod(0o755)
subprocess.Popen([script], start_new_session=True)
word(restart="never", exit_code=0, state="finished")
"""
    )
    quick = "import sys, pitstop.supervise.child as c; c.TRACKER_SECONDS = 1.5; from pitstop.cli import main; "
    program = [sys.executable, "-c", quick + "sys.exit(main())", "launch", "--grace", "100ms", str(one.recipe)]
    for seconds, uploaded in (("60", False), ("0.8", True)):
        with open(one.out, "ab") as out:
            process = subprocess.Popen([*program, seconds], env=one.env, stdout=out, stderr=out)
        assert one.end(process, seconds=10) == 0
        assert one.exists("uploaded") is uploaded


def test_adopted_zombies_are_reaped_while_the_recipe_runs(fake: MakeFake) -> None:
    one = fake(
        """
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    os.wait()
note("ready")
sleep_until("go")
"""
    )
    process = one.start()
    one.wait_for("ready")

    def states() -> list[str]:
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                stats.append(path.read_text().rpartition(")")[2].split())
        return [fields[0] for fields in stats if fields[1] == str(process.pid)]

    until(lambda: len(states()) == 1, "one child, and no zombies", seconds=5)
    (one.folder / "go").touch()
    assert one.end(process) == 0


CRASHES = """
number = attempt()
RUN.mkdir(parents=True, exist_ok=True)
(RUN / "train.log").touch()
word()
if number <= {crashes}:
    {progress}
    os.kill(os.getpid(), signal.SIGKILL)
word(restart="never", exit_code=0, state="finished")
"""


def test_a_crash_is_followed_by_another_start(fake: MakeFake) -> None:
    one = fake(CRASHES.format(crashes=2, progress="checkpoint(number)"))
    begun = time.monotonic()
    assert one.go() == 0
    assert one.attempts == 3
    assert 2 <= time.monotonic() - begun < 5, "progress resets the wait to 1 s"
    assert "SIGKILL" in one.text


@pytest.mark.parametrize(
    ("progress", "flags", "attempts", "said"),
    [("pass", (), 2, "brought no new checkpoint"), ("checkpoint(number)", ("--restarts", "1"), 2, "--restarts")],
)
def test_it_does_not_crash_for_ever(
    progress: str, flags: tuple[str, ...], attempts: int, said: str, fake: MakeFake
) -> None:
    one = fake(CRASHES.format(crashes=99, progress=progress))
    assert one.go(*flags) == 1
    assert one.attempts == attempts
    assert said in one.text
    assert str(one.folder / "runs" / "r" / "train.log") in one.text


def test_a_failure_that_says_so_is_tried_again_and_one_for_a_person_is_not(fake: MakeFake) -> None:
    for restart, attempts in (("now", 2), ("person", 1)):
        one = fake(f"attempt(); word(restart={restart!r}, exit_code=1, state='failed', reason='a defect'); sys.exit(1)")
        assert one.go() == 1
        assert one.attempts == attempts
        assert "a defect" in one.text


@pytest.mark.parametrize(
    "last_word",
    [
        "os.kill(os.getpid(), 9)",
        pytest.param("time.sleep(1.5); word(restart='now', exit_code=1)", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_fails_with_checkpoints_from_before_is_tried_twice(last_word: str, fake: MakeFake) -> None:
    """The last word takes the place of the first, which alone says where the attempt began."""
    one = fake(f"checkpoint(5) if attempt() == 1 else None; word(newest=5); {last_word}")
    assert one.go() == 1
    assert one.attempts == 2
    assert "it fails after step 5" in one.text


def test_a_store_that_cannot_be_reached_at_the_start_is_tried_again(fake: MakeFake) -> None:
    body = "number = attempt(); word(restart='now', exit_code=1, reason='no answer') if number == 1 else word("
    one = fake(body + "restart='never', exit_code=0)")
    assert one.go() == 0
    assert one.attempts == 2
    assert "no answer; starting again in 1 s" in one.text


@pytest.mark.parametrize(("grace", "told"), [("5m", "295"), ("60s", "55"), ("2s", "1")])
def test_the_recipe_is_told_how_long_it_has(grace: str, told: str, fake: MakeFake) -> None:
    one = fake("note('told', os.environ['PITSTOP_GRACE_SECONDS'])")
    assert one.go("--grace", grace) == 0
    assert one.read("told") == f"{told}\n"


STRANGER = """
import os, sys, time
def note(name):
    with open(name, "a") as file:
        file.write(f"{os.getpid()}\\n")
def orphan(own_session, seconds_below):
    if os.fork() == 0:
        if os.fork() == 0:
            if own_session:
                os.setsid()
            note("strangers")
            time.sleep(60)
        time.sleep(seconds_below)
        os._exit(0)
    os.wait()
note("strangers")
while not os.path.exists("ready"):
    time.sleep(0.01)
orphan(own_session=False, seconds_below=0.1)
orphan(own_session=True, seconds_below=2.5)
note("go")
time.sleep(60)
"""


@pytest.mark.slow
def test_what_it_has_not_started_is_left_alone(fake: MakeFake) -> None:
    """Jobs of the shell that became this program, and what they start meanwhile, orphans too; not so the recipe's."""
    one = fake(CRASHES.format(crashes=1, progress="daemon(); note('ready'); sleep_until('go')"))
    (one.folder / "stranger.py").write_text(STRANGER)
    shell = f'env -i {sys.executable} stranger.py & while [ ! -e strangers ]; do sleep 0.05; done; exec "$@"'
    process = one.start("--grace", "300ms", before=("sh", "-c", shell, "sh"))
    try:
        assert one.end(process) == 0
        assert one.attempts == 2
        strangers = one.read("strangers").split()
        assert len(strangers) == 3
        for pid in strangers:
            assert b"stranger.py" in Path(f"/proc/{pid}/cmdline").read_bytes(), one.text
    finally:
        for pid in one.read("strangers").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def test_a_run_that_cannot_be_started_ends_the_bill_too(fake: MakeFake) -> None:
    one = fake("attempt()")
    end = ("--then", f"touch {one.folder}/then-$PITSTOP_STATE")

    def ended(code: int, said: str, process: "subprocess.Popen[bytes]") -> None:
        text = process.communicate()[1].decode()
        assert one.end(process) == code, text
        assert said in text
        (one.folder / "then-failed").unlink()

    piped = {"stderr": subprocess.PIPE}
    one.env["CUDA_VISIBLE_DEVICES"] = "0,1"
    ended(2, "only 2 GPUs", one.start("--processes", "3", *end, **piped))
    one.env["CUDA_VISIBLE_DEVICES"] = ""
    (one.folder / "file").touch()
    ended(2, "cannot be made", one.start("--detach", *end, words=("--runs_dir", "file/x"), **piped))

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    ended(1, "No usable temporary directory", one.start(*end, preexec_fn=full, **piped))
    code = "import sys; sys.executable = '/no/python'; from pitstop.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", code, "launch", *end, str(one.recipe)]
    ended(2, "/no/python cannot be started", subprocess.Popen(argv, cwd=one.folder, env=one.env, **piped))
    assert one.attempts == 0
    assert one.go("--grace", "soon", *end) == 2, "its own flags are wrong: nothing was promised"
    assert not one.exists("then-failed")


def test_a_signal_while_nothing_runs(fake: MakeFake) -> None:
    one = fake("attempt(); word(); os.kill(os.getpid(), signal.SIGKILL)")
    process = one.start()
    until(lambda: "starting again" in one.text, "the wait")
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert one.end(process) == 75
    assert time.monotonic() - begun < 0.8
    assert one.attempts == 1


def test_a_crash_after_a_signal_is_left_to_the_next_machine(fake: MakeFake) -> None:
    one = fake(WAITS + "while not count: time.sleep(0.01)\nos.kill(os.getpid(), signal.SIGSEGV)")
    process = one.start("--then_on", "finished,failed", "--then", "touch then")
    one.wait_for("ready")
    process.send_signal(signal.SIGTERM)
    assert one.end(process) == 75
    assert one.attempts == 1
    assert not one.exists("then")


def test_the_last_command_may_fail_and_be_ended(fake: MakeFake) -> None:
    one = fake("sys.exit(2)")
    assert one.go("--then", "exit 7") == 2
    assert "--then ended with exit code 7" in one.text
    process = one.start("--then", f"touch {one.folder}/then; sleep 60")
    one.wait_for("then")
    process.send_signal(signal.SIGINT)
    assert one.end(process, seconds=5) == 2


def test_killed_itself_it_takes_the_recipe_along_politely(fake: MakeFake) -> None:
    one = fake(STOPS)
    process = one.start()
    one.wait_for("ready")
    process.kill()
    process.wait()
    one.wait_for("signals")
    until(lambda: one.read("signals") == "SIGTERM\n", "its signal")  # the file is there before its line
    until(lambda: not survivors(one.mark), "its end")


def test_a_terminal_that_closes_stops_nothing(fake: MakeFake) -> None:
    one = fake(
        """
checkpoint(attempt())
note("ready")
if attempt() == 2:
    sleep_until("go")
    os.kill(os.getpid(), signal.SIGKILL)  # so that the supervisor has to speak
note("finished")
word(restart="never", exit_code=0, state="finished")
"""
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(one.folder)
        os.execve(sys.executable, one.argv(), one.env)
    one.wait_for("ready")
    assert os.tcgetpgrp(terminal) == pid
    os.close(terminal)  # SIGHUP, and EIO for every write from here on
    (one.folder / "go").touch()
    one.wait_for("finished")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    until(lambda: not survivors(one.mark), "its end")


def test_ctrl_c_in_a_terminal_reaches_the_recipe_once(fake: MakeFake) -> None:
    one = fake(STOPS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(one.folder)
        os.execve(sys.executable, one.argv(), one.env)
    one.wait_for("ready")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 76
    assert one.read("signals") == "SIGINT\n"


def test_nobody_listens_and_the_parent_ignores_its_children(fake: MakeFake) -> None:
    """A closed pipe, and SIGCHLD, SIGINT ignored as some parents and shells leave them."""
    one = fake("attempt(); word(); os.kill(os.getpid(), signal.SIGKILL)")

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    reading, writing = os.pipe()
    process = one.start(stdout=writing, stderr=writing, preexec_fn=ignore)
    os.close(reading)
    os.close(writing)
    assert one.end(process) == 1
    assert one.attempts == 2


needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True, check=False).returncode != 0,
    reason="no rights for a pid namespace",
)


@needs_namespaces
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_as_pid_1_of_a_container(name: str, fake: MakeFake) -> None:
    one = fake("daemon(); note('ppid', str(os.getppid()))\n" + STOPS)
    process = one.start("--grace", "2s", before=("unshare", "-pf", "--mount-proc"))
    one.wait_for("ready")
    assert one.read("ppid") == "1\n"
    first = next(pid for pid, words in survivors(one.mark).items() if "pitstop.cli" in words and "unshare" not in words)
    os.kill(first, signal.Signals[f"SIG{name}"])
    assert one.end(process) == (75 if name == "TERM" else 76)
    assert one.read("signals") == f"SIG{name}\n"
    assert one.attempts == 1


def test_where_proc_is_another_namespaces_it_refuses(fake: MakeFake) -> None:
    if needs_namespaces.args[0]:
        pytest.skip("no rights for a pid namespace")
    one = fake("attempt()")
    assert one.go(before=("unshare", "-pf")) == 2
    assert "/proc does not show this process" in one.text
    assert not one.exists("attempts")
