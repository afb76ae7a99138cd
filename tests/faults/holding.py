"""An attempt that waits at a named instant (HOLD_AT of tiny.py) until the test lets it go on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.harness import Job, Run

PATIENCE_SECONDS = 60.0


def until(condition: Callable[[], object], job: Job, *, also_when_over: bool = False) -> None:
    """Waits for `condition` while the job runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass; the program said:\n{job.text}"
        if job.over.wait(0.01):
            assert also_when_over or condition(), f"it ended before: {job.codes}\n{job.text}"
            return


@contextmanager
def held(run: Run, instant: str, *flags: str, **env: str) -> Iterator[Job]:
    """Starts an attempt; inside the block it stands at `instant`, in the thread that came there; then it goes on."""
    file = run.folder / f"hold-{run.attempts}"
    job = run.start(*flags, HOLD_AT=instant, HOLD=str(file), **env)
    until(Path(f"{file}.held").exists, job)
    yield job
    Path(f"{file}.go").touch()


def steps(run: Run) -> int:
    """How many were computed by now, over all ranks and attempts."""
    return len(run.step_log())


def stopped(run: Run, restart: str) -> dict[str, object]:
    """status.json of a run that was stopped and says `restart`."""
    status = run.status()
    assert (status["state"], status["restart"]) == ("stopped", restart), status
    return status
