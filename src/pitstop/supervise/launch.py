"""The flags of `pitstop launch`, and its course: start, wait, judge, start again, and a last command."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pitstop.config import operational
from pitstop.errors import BAD_USAGE, FAILED, FINISHED, UserError
from pitstop.flags import LOOKS_LIKE_A_FLAG, parse
from pitstop.supervise import STOP_SIGNALS
from pitstop.supervise.child import Child, next_signal
from pitstop.supervise.detach import detach
from pitstop.supervise.outcome import GiveUp, Patience, Verdict, judge, read_outcome, stop_code
from pitstop.supervise.processes import become_subreaper, reap, require_linux, require_proc, send
from pitstop.supervise.program import Command, build, value_of
from pitstop.supervise.say import say
from pitstop.values import seconds

STATES = ("finished", "failed", "stopped")


def _file(value: str) -> str:
    if value and not os.path.isfile(value):
        raise ValueError(f"there is no such file in {os.getcwd()}" if not os.path.isabs(value) else "no such file")
    return value


def _processes(value: str) -> str:
    if value != "auto" and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError("auto or a whole number of at least 1 was expected")
    return value


def _states(value: str) -> str:
    if not value or not set(value.split(",")) <= set(STATES):
        raise ValueError(f"one or more of {','.join(STATES)} was expected, with commas between")
    return value


class Launch(BaseModel):
    """Starts a recipe and stays with it: passes signals on, waits for its last checkpoint, starts
    it again after a crash, and leaves no process behind.

    These flags stand before the recipe, the recipe's own after it:
    pitstop launch --then "sudo shutdown now" recipes/cifar10.py --epochs 10
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    recipe: Annotated[str, AfterValidator(_file)]
    """the program; every word after it is its own"""
    processes: Annotated[str, AfterValidator(_processes)] = "auto"
    """processes that train together: a number, or auto: one for each GPU, one without any"""
    config_file: Annotated[str, AfterValidator(_file)] = ""
    """for accelerate launch, as its flag of this name"""
    restarts: int = Field(10, ge=0)
    """most new starts after crashes; two in a row without a new checkpoint are the end anyway"""
    grace: Annotated[float, BeforeValidator(seconds)] = operational("60s")
    """time (30s, 2m) that is left after a signal, and after the recipe's end, until what still runs is killed"""
    detach: bool = False
    """go into the background, with a log in the directory of the runs"""
    then: str = ""
    """command for /bin/sh at the end, however it ended; it finds PITSTOP_STATE and PITSTOP_RUN in its environment"""
    then_on: Annotated[str, AfterValidator(_states)] = ",".join(STATES)
    """the ends at which --then runs: stopped is a run to be continued, failed includes flags that the recipe refuses"""


def split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Own flags; the recipe, if there is one; its words."""
    words, own = deque(argv), list[str]()
    while words and LOOKS_LIKE_A_FLAG.match(words[0]):
        word = words.popleft()
        own.append(word)
        name, equals, _ = word.lstrip("-").partition("=")
        field = Launch.model_fields.get(name.replace("-", "_"))
        # An unknown flag may or may not have a value; a file that is there is rather the recipe.
        takes_value = field.annotation is not bool if field else bool(words) and not os.path.isfile(words[0])
        if takes_value and not equals and words and not LOOKS_LIKE_A_FLAG.match(words[0]):
            own.append(words.popleft())
    return own, [words.popleft()] if words else [], list(words)


def main(argv: Sequence[str]) -> int:
    """See `pitstop.supervise.launch`, which has blocked the signals."""
    own, recipe, words = split(argv)
    flags = parse(Launch, [*recipe, *own], words=("recipe",), program="pitstop launch")
    require_linux()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the recipe inherits it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, exit codes would be lost
    run: Path | None = None
    try:  # from here on --then is promised: a paid machine must not wait for a person because nothing could be started
        require_proc()
        command = build(
            flags.recipe,
            words,
            processes=flags.processes,
            config_file=flags.config_file,
            grace_seconds=flags.grace,
            env=os.environ,
        )
        if flags.detach and _goes_on_elsewhere(words):
            return FINISHED
        become_subreaper()
        with tempfile.TemporaryDirectory(prefix="pitstop-", ignore_cleanup_errors=True) as folder:
            verdict, run = supervise(command, Path(folder), restarts=flags.restarts, grace_seconds=flags.grace)
    except UserError as error:
        verdict = Verdict(error.exit_code, str(error))
    except OSError as error:  # a full /tmp, say
        verdict = Verdict(FAILED, f"pitstop launch itself: {error}")
    if verdict.code != FINISHED:
        log = run / "train.log" if run and verdict.code == FAILED else None
        more = f"; the end of {log} tells more" if log and log.is_file() else ""
        say(f"{verdict.state}: {verdict.reason or 'without a reason'}{more} (exit code {verdict.code})")
    trained = run is not None or verdict.code != FINISHED  # --help and --dry_run end well, and promise nothing
    if flags.then and trained and verdict.state in flags.then_on.split(","):
        finally_run(flags.then, verdict, run)
    return verdict.code


def _goes_on_elsewhere(words: Sequence[str]) -> bool:
    """False in the new process of --detach; True here, once it was said how to reach that."""
    runs_dir = value_of("runs_dir", words) or os.environ.get("PITSTOP_RUNS_DIR") or "runs"
    background = detach(Path(runs_dir).expanduser())
    if background is None:
        return False
    pid, log = background
    name = value_of("name", words)
    attach = shlex.join(["pitstop", "attach", *([name] if name else []), "--runs_dir", runs_dir])
    with contextlib.suppress(OSError):  # whether or not anyone reads it, it has begun: here is no error any more
        os.write(1, f"pid {pid}, to stop it: kill {pid}\nlog {log}\n{attach}\n".encode(errors="replace"))
    return True


def supervise(command: Command, folder: Path, *, restarts: int, grace_seconds: float) -> tuple[Verdict, Path | None]:
    """Attempts until one of them ends the matter; its verdict, and the run's directory if it is known.

    Args:
        folder: for the words of the attempts, one file each.
    """
    patience = Patience(restarts)
    run: Path | None = None
    if verdict := _asked_to_stop(0):
        return verdict, run
    while True:
        word = folder / f"outcome-{patience.used}.json"
        try:
            child = Child(command, word, grace_seconds)
        except OSError as error:
            return Verdict(BAD_USAGE, f"{command.argv[0]} cannot be started: {error.strerror}"), run
        code = child.wait()
        outcome = read_outcome(word)
        run = outcome.run or run
        verdict = judge(outcome, code, child.passed)
        if not verdict.again:
            return verdict, run
        try:
            wait_seconds = patience.after_failure(run, child.first_newest)
        except GiveUp as reason:
            return Verdict(FAILED, f"{verdict.reason}; not started again, for {reason}"), run
        say(f"failed: {verdict.reason}; starting again in {wait_seconds:g} s ({patience.used} of {restarts})")
        if verdict := _asked_to_stop(wait_seconds):
            return verdict, run


def _asked_to_stop(within_seconds: float) -> Verdict | None:
    """A stop that is asked for while nothing runs."""
    deadline = time.monotonic() + within_seconds
    while True:
        number = next_signal(deadline - time.monotonic())
        if number in STOP_SIGNALS:
            return Verdict(stop_code([number]), signal.Signals(number).name)
        if number == 0:
            return None


def finally_run(text: str, verdict: Verdict, run: Path | None) -> None:
    """The command of --then, to its end; signals go to it and what it has started."""
    env = {**os.environ, "PITSTOP_STATE": verdict.state, "PITSTOP_RUN": str(run or "")}
    say(f"--then: {text}")
    process = subprocess.Popen(
        ["/bin/sh", "-c", text],
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []),
    )
    while process.pid not in (ended := reap()):
        number = next_signal(1.0)
        if number in STOP_SIGNALS:
            send([-process.pid], number)
    process.returncode = ended[process.pid]
    if process.returncode != 0:
        say(f"--then ended with exit code {process.returncode}")
