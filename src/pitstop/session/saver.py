"""When a checkpoint is due, and what becomes of it."""

import shutil
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pitstop import checkpoint
from pitstop.config import seconds
from pitstop.errors import PERSON_DECIDES
from pitstop.files import clear_leftovers, require_space
from pitstop.rundir import RunDirectory, now
from pitstop.stopper import Stopper

FAILURES = 3  # in a row, before the run stops


class Saver:
    """Saves every so many steps or seconds, and at the last step; only rank 0 writes.

    A save that fails (a full disk) costs a line: training goes on, and the next interval tries again. After three in
    a row the run stops, with the last good checkpoint intact.
    """

    def __init__(
        self, run: RunDirectory, *, every: str, keep: int, stopper: Stopper, say: Callable[[str], None]
    ) -> None:
        self._run, self._keep, self._stopper, self._say = run, keep, stopper, say
        self._folder = run.path / "checkpoints"
        self._every_steps = int(every.removesuffix("s").removesuffix("step")) if "step" in every else 0
        self._every_seconds = 0.0 if self._every_steps else seconds(every)
        self._failures = 0
        self.step = -1  # of the newest checkpoint
        self.passed()

    def passed(self) -> None:
        """The interval begins anew, on every rank."""
        self._since = time.monotonic()

    def due_at(self, step: int) -> bool:
        """By the step: all ranks know it without asking."""
        return bool(self._every_steps) and step % self._every_steps == 0

    def due_now(self) -> bool:
        """By the clock, on which the ranks must agree."""
        return not self._every_steps and time.monotonic() - self._since >= self._every_seconds

    def find(self) -> checkpoint.Checkpoint | None:
        """The newest checkpoint that is whole; see `checkpoint.newest`."""
        clear_leftovers(self._folder)
        return checkpoint.newest(self._folder, complain=self._complain)

    def _complain(self, text: str) -> None:
        self._run.event("bad_checkpoint", text=text)
        self._say(text)

    def check_space(self, state_bytes: int) -> None:
        """Raises UserError if the disk cannot hold what the run is going to write: before the first paid step."""
        require_space(self._run.path, state_bytes * (self._keep + 2), f"{self._keep} checkpoints and the result")

    def in_use(self, step: int) -> None:
        """What `find` gave is in use."""
        self.step = step
        self.passed()

    def save(self, step: int, tensors: dict[str, Tensor], about: dict[str, Any], sync: Callable[[], int]) -> bool:
        """Commits a checkpoint, after `sync` has made the metrics durable and told their length. False if one of them
        could not be written."""
        begun = time.monotonic()
        try:
            about = {"time": now(), "metrics_bytes": sync(), **about}
            size = checkpoint.write(self._folder, step, tensors, about, keep=self._keep)
        except OSError as error:
            self._failed(step, error, sum(tensor.nbytes for tensor in tensors.values()))
            return False
        self._failures = 0
        self.step = step
        self._run.event("save", step=step, seconds=round(time.monotonic() - begun, 4), bytes=size)
        return True

    def _failed(self, step: int, error: OSError, needed_bytes: int) -> None:
        self._failures += 1
        last = f"the last good one is that of step {self.step}" if self.step >= 0 else "there is none yet"
        free_bytes = shutil.disk_usage(self._folder).free
        self._say(
            f"CHECKPOINT OF STEP {step} WAS NOT SAVED to {self._folder}: {error.strerror} "
            f"({needed_bytes / 1e6:,.1f} MB needed, {free_bytes / 1e6:,.1f} MB free); {last}. Training goes on."
        )
        if self._failures >= FAILURES:
            self._stopper.request(f"{FAILURES} saves in a row failed: {error.strerror}", PERSON_DECIDES)
