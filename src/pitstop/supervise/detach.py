"""Into the background: a process of its own session, which no terminal can reach."""

import json
import os
from pathlib import Path

from pitstop.errors import UserError
from pitstop.launcher import background_log


def detach(runs_dir: Path) -> tuple[int, Path] | None:
    """Goes on in a new process. There it returns None; here its pid and the file to which its output goes.

    Two forks: a leader of a session could still be given a terminal, its child cannot.

    Raises:
        UserError: this is PID 1, with whose end the container ends; or the log cannot be written.
    """
    if os.getpid() == 1:
        raise UserError("--detach: this is PID 1, and the container ends with it. Leave --detach out.")
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{runs_dir} cannot be made ({error.strerror}): choose another --runs_dir.") from error
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            said = json.loads(pipe.read() or '{"error": "it ended at once"}')
        if "error" in said:
            raise UserError(f"no log can be written in {runs_dir}: {said['error']}")
        return said["pid"], Path(said["log"])
    os.close(reading)
    os.setsid()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)  # the first process says so
    said = _redirect(runs_dir)
    os.write(writing, json.dumps(said).encode())
    os.close(writing)
    if "error" in said:
        os._exit(1)
    return None


def _redirect(runs_dir: Path) -> dict[str, object]:
    """No input; output and errors to a log that is named after this process."""
    log = background_log(runs_dir, os.getpid())
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        return {"error": f"{error.strerror}"}
    for target, descriptor in enumerate((null, output, output)):
        os.dup2(descriptor, target)
    os.close(null)
    os.close(output)
    return {"pid": os.getpid(), "log": str(log)}
