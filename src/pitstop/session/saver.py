"""When a checkpoint is due, and what becomes of it."""

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pitstop import checkpoint
from pitstop.checkpoint import Moved, Poisoned, Saved
from pitstop.config import RecipeConfig
from pitstop.errors import PERSON_DECIDES
from pitstop.files import clear_leftovers, require_space
from pitstop.record import Metrics
from pitstop.rundir import RunDirectory, now
from pitstop.session.cost import SaveCost
from pitstop.session.rows import Clock
from pitstop.stopper import Stopper
from pitstop.values import seconds

FAILURES = 3  # in a row, before the run stops


class Saver:
    """Saves every so many steps or seconds, and at the last step, behind the training; only rank 0 writes.

    A save that fails (a full disk) costs a line: training goes on, and the next interval tries again. After three in
    a row the run stops, with the last good checkpoint intact. A state with NaN in it is never saved, and stops the run.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RecipeConfig,
        metrics: Metrics,
        stopper: Stopper,
        *,
        say: Callable[[str], None],
        saved: Callable[[int, int], None],
    ) -> None:
        self._run, self._keep, self._metrics, self._stopper = run, config.keep, metrics, stopper
        self._say, self._saved = say, saved
        self._folder = run.path / "checkpoints"
        self._writer = checkpoint.Writer(self._folder, keep=config.keep)
        self._cost = SaveCost(seconds(config.mtbf))
        every = config.save_every
        self._every_steps = int(every.removesuffix("s").removesuffix("step")) if "step" in every else 0
        self._every_seconds = 0.0 if self._every_steps or every == "auto" else seconds(every)
        self._failures, self._eager = 0, False
        self.poisoned = False  # the state holds NaN: nothing more is saved
        self._metrics_bytes = 0  # that the save in flight covers
        self.step = -1  # of the newest checkpoint
        self._since = time.monotonic()

    def due_at(self, step: int) -> bool:
        """By the step: all ranks know it without asking."""
        return bool(self._every_steps) and step % self._every_steps == 0

    def due_now(self) -> bool:
        """By the clock, on rank 0, which asks the others."""
        return not self._writer.busy and not self._every_steps and time.monotonic() - self._since >= self.interval()

    def interval(self) -> float:
        """Seconds between two saves by the clock: what a stop without notice costs at most, a write apart."""
        return self._every_seconds or self._cost.interval

    @property
    def last_good(self) -> str:
        return f"the last good one is that of step {self.step}" if self.step >= 0 else "there is none yet"

    def find(self, state_bytes: int) -> checkpoint.Checkpoint | None:
        """The newest checkpoint that is whole; see `checkpoint.newest`.

        Raises:
            UserError: the disk cannot hold what the run is going to write: before the first paid step.
        """
        clear_leftovers(self._folder)
        there = sum(file.lstat().st_size for file in self._folder.glob("step-*/*"))  # of those that are kept
        needed = max(2 * state_bytes, state_bytes * (self._keep + 2) - there)
        require_space(self._run.path, needed, f"{self._keep} checkpoints and the result")
        return checkpoint.newest(self._folder, complain=self._complain)

    def _complain(self, text: str) -> None:
        self._run.event("bad_checkpoint", text=text)
        self._say(text)

    def ready(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Training begins with these tensors; `step` is that of the checkpoint which they are from, or -1."""
        self._writer.prepare(tensors)
        self.step = step
        self._since = time.monotonic()

    def before_update(self) -> None:
        """The optimizer is about to change its tensors."""
        self._writer.settle()

    def begin(
        self, step: int, tensors: dict[str, Tensor], still: set[str], about: dict[str, Any], clock: Clock
    ) -> None:
        """Saves this step behind the next ones, unless it is saved already. Waits for the save before, if need be.

        Args:
            still: names of tensors that nothing changes until `before_update`.
        """
        self.poll(clock, wait=True)
        if self.poisoned or self.step == step:
            return
        self._since = time.monotonic()
        try:
            self._metrics_bytes = self._metrics.flush()
        except OSError as error:
            self._failed(Saved(step, 0.0, 0.0, 0, error), sum(tensor.nbytes for tensor in tensors.values()))
            return
        self._cost.began(clock)
        about = {"time": now(), "metrics_bytes": self._metrics_bytes, **about}
        self._writer.begin(step, tensors, set() if self._eager else still, about, self._metrics.sync)

    def poll(self, clock: Clock, *, wait: bool = False) -> None:
        """What became of the save in flight, if it is over; called after every step."""
        self._cost.stepped(clock)
        saved = self._writer.take(wait=wait)
        if saved is None:
            return
        slowdown = self._cost.ended(clock, saved)
        if saved.error is not None:
            self._failed(saved, self._writer.bytes)
            return
        self._failures, self.step = 0, saved.step
        self._run.event(
            "save",
            step=saved.step,
            trained=round(clock.seconds, 3),
            stall_seconds=round(saved.stall_seconds, 5),
            write_seconds=round(saved.write_seconds, 4),
            slowdown_seconds=round(slowdown, 4),
            interval_seconds=None if self._every_steps else round(self.interval(), 1),
            bytes=saved.bytes,
        )
        self._saved(saved.step, self._metrics_bytes)

    def _failed(self, saved: Saved, needed_bytes: int) -> None:
        last = self.last_good
        if isinstance(saved.error, Moved):
            self._eager = True
            self._say(
                f"The checkpoint of step {saved.step} is given up: {saved.error}. From now on saves copy all at once."
            )
            return
        if isinstance(saved.error, Poisoned):
            self.poisoned = True
            self._say(f"CHECKPOINT OF STEP {saved.step} IS NOT SAVED: {saved.error}; {last}.")
            self._stopper.request(f"{saved.error} after step {saved.step}; {last}", PERSON_DECIDES)
            return
        assert isinstance(saved.error, OSError)
        self._failures += 1
        free_bytes = 0
        with contextlib.suppress(OSError):  # the disk may be gone
            free_bytes = shutil.disk_usage(self._folder).free
        self._say(
            f"CHECKPOINT OF STEP {saved.step} WAS NOT SAVED to {self._folder}: {saved.error.strerror} "
            f"({needed_bytes / 1e6:,.1f} MB needed, {free_bytes / 1e6:,.1f} MB free); {last}. Training goes on."
        )
        self._run.event("save_failed", step=saved.step, error=saved.error.strerror)
        if self._failures >= FAILURES:
            self._stopper.request(f"{FAILURES} saves in a row failed: {saved.error.strerror}", PERSON_DECIDES)
