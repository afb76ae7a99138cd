"""What one attempt says and writes down: the side of a session that only rank 0 has."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pitstop.config import RecipeConfig
from pitstop.curves import Recorder, Target, require
from pitstop.disks import fleeting
from pitstop.errors import FAILED, FINISHED, PERSON_DECIDES, START_AGAIN, StoppedError, UserError
from pitstop.launcher import tell_launcher
from pitstop.meter import Meter
from pitstop.record import Progress
from pitstop.rundir import Heartbeat, RunDirectory
from pitstop.session import messages
from pitstop.session.identity import Definition, run_path
from pitstop.session.remote import Remote
from pitstop.stopper import stop_file
from pitstop.store import Shelf

LOCK_WAIT_SECONDS = 10.0
TRACKER_SECONDS = 8.0  # of the time that is left, the store leaves so much to W&B
OTHER_RANK_WAITS_SECONDS = 3.0
RESTART = {
    FINISHED: "never",
    START_AGAIN: "now",
    PERSON_DECIDES: "person",
    UserError.exit_code: "person",
    FAILED: "now",
}


class Attempt:
    """One process lifetime of a run, as people and launchers see it. On other ranks than 0 it is mute."""

    def __init__(self, config: RecipeConfig, recipe: Path, rank: int, seconds_left: Callable[[], float | None]) -> None:
        self.config, self.recipe, self.rank = config, recipe, rank
        self.seconds_left = seconds_left  # until the process may be killed; None where nobody has said so
        self.leads = rank == 0
        self.run = RunDirectory(run_path(config, recipe))
        self.definition = Definition(config, recipe, self.run)
        self._progress: Progress | None = None
        self._tracker: Recorder | None = None
        self._heartbeat: Heartbeat | None = None
        self._reached: Callable[[], dict[str, Any]] = dict
        self._remote: Remote | None = None
        self.shelf: Shelf | None = None
        self.interval: Callable[[], float] | None = None  # seconds between two saves, once there is somebody to ask
        self._newest = -1  # step of the newest checkpoint at the start: what progress is measured from
        self._ended = False

    def look(self) -> bool:
        """Is the run finished? Then its result is printed. Known before anything is loaded, to rank 0 alone: the others
        need not see the disk, and must not judge by a file that rank 0 may see a moment later. Else an attempt begins
        here: what it costs is paid.

        Raises:
            UserError: it was begun with something else, another process is at it, or its budget is spent.
        """
        if not self.leads or self.config.dry_run or self.config.estimate:
            return False
        require(self.config.tracker)
        self.run.take(LOCK_WAIT_SECONDS)
        if self.config.store:
            self._remote = Remote(self.config.store, self.run, keep=self.config.keep, say=self.say)
            self._remote.fetch()
            self.shelf = Shelf(self.config.store, self.say)
        if self.run.exists():
            self.definition.look()
            self._ended = not self.definition.accepted and self.run.status().get("state") == "finished"
        if self._ended:
            self._tell_launcher(state="finished", restart="never", exit_code=FINISHED)
            if self._remote:  # what did not get up when it finished
                self._remote.start(self.run.status().get("attempt", 0))
                self._remote.finish(None)
            print(messages.finished(self.run.path, self.run.status()))
        else:
            self._begin()
        return self._ended

    def _begin(self) -> None:
        self.run.meter = Meter(price=self.config.price, currency=self.config.currency)
        self.run.open(LOCK_WAIT_SECONDS)
        self._newest = self.run.newest_step()
        self._tell_launcher()
        if reason := self.run.meter.spent(self.config.budget):
            raise StoppedError(f"{self.run.path}: {reason}. To go on: a larger --budget.")
        if stop_file(self.run.path).check():
            raise StoppedError(f"{self.run.path}: a file STOP was there, and is removed now: start again to go on.")
        self.run.write_status(state="running", reason="", restart="now", result=None)
        self._heartbeat = Heartbeat(self.run, lambda: self._reached())
        self._heartbeat.start()
        if self._remote:
            self._remote.start(self.run.attempt)

    @property
    def wants_more(self) -> bool:
        """Would the same command go on with the run?"""
        if self.config.dry_run or self.config.estimate:
            return False
        if not (self.run.is_open or self._ended):
            return True  # what is said there is of the attempt before
        return bool(self.run.status().get("restart", "now") == "now")

    def taken_over(self) -> str:
        """Another machine has taken this run over: why to stop, or nothing."""
        return self._remote.taken_over() if self._remote else ""

    def _tell_launcher(self, **how_it_ended: Any) -> None:
        if self.leads:
            tell_launcher(run=str(self.run.path.resolve()), newest=self._newest, **how_it_ended)

    def start(self, progress: Callable[[], dict[str, Any]], batch_size: int, shape: dict[str, Any]) -> None:
        """Begins to train: status, heartbeat, bar, tracker. `progress` gives step and total_steps."""
        reached = progress()
        self._reached = progress
        self._progress = Progress(reached["step"], reached["total_steps"], shown=self.leads)
        if not self.leads:
            return
        if changes := self.definition.accepted:  # only now is it known that the checkpoint fits what is wanted
            self.run.event("accepted_change", changes=changes)
            self.definition.write(self.run.config())
        self.run.event("start", **reached, shape=shape)
        self.run.write_status(**reached)
        if not self.config.store and (warning := fleeting(self.run.path)):
            self.say(warning)
        self.say(messages.header(self.run.path, reached, batch_size, shape, self.run.attempt))
        if self.config.tracker != "none":
            target = Target.of(self.config)
            self.run.event("tracker", **target.event())
            self._tracker = Recorder(self.run.path, self.recipe, target, say=self.say, event=self.run.event)

    def say(self, text: str) -> None:
        """A line for the person and for train.log."""
        if self.leads:
            self.run.log(text)
            if self._progress:
                self._progress.say(text)
            else:
                print(text, flush=True)

    def stepped(self) -> None:
        assert self._progress is not None, "restore() comes first"
        self._progress.step()
        if self._tracker:
            self._tracker.start()

    def row(self, step: int, text: str, left: str) -> None:
        """What a row of metrics says: on the bar, and in train.log."""
        assert self._progress is not None, "restore() comes first"
        self._progress.row(step, text, left)
        if self.leads:
            self.run.log(f"step {step}  {text}")

    def saved(self, step: int, metrics_bytes: int) -> None:
        """A checkpoint is on the disk: it, and what it covers, goes out."""
        if self._remote:
            self._remote.committed(step)
        self.recorded(metrics_bytes)

    def recorded(self, metrics_bytes: int) -> None:
        """So much of metrics.jsonl is durable, and will not be written anew."""
        if self._tracker:
            self._tracker.covered(metrics_bytes)

    def ended(self, state: str, reason: str, code: int, **fields: Any) -> None:
        """The attempt is over: status first, store and tracker with the time that is left."""
        self._ended = True
        if state == "stopped":
            with contextlib.suppress(OSError):  # it may be a directory
                (self.run.path / "STOP").unlink()  # it is obeyed
        if self._heartbeat:
            self._heartbeat.stop()
        if self.leads and self.run.is_open:
            self.run.event(state, reason=reason, exit_code=code, **self._reached(), **fields)
            try:
                self.run.write_status(state=state, reason=reason, restart=RESTART[code], **self._reached(), **fields)
            except OSError as error:  # a full disk: the reason why it ends is what the exit code must say
                if state == "finished":
                    raise
                self.say(f"status.json was not written: {error.strerror}")
        elif self.leads and self.run.lock.held:  # it did not come to an attempt; what the last one said is not so
            with contextlib.suppress(OSError):
                self.run.correct_status(state=state, reason=reason, restart=RESTART[code])
        step = self._reached().get("step", 0)
        self._tell_launcher(state=state, restart=RESTART[code], reason=reason, exit_code=code, step=step)
        left = self.seconds_left()
        if self._remote:
            self._remote.finish(None if left is None else max(0.0, left - TRACKER_SECONDS))
        if self._tracker:
            self._tracker.finish(code, self.seconds_left())

    def log_traceback(self) -> None:
        """Of the exception that is being handled, in train.log."""
        if self.run.is_open:
            self.run.log(traceback.format_exc())

    def failed(self, error: Exception) -> None:
        """A defect, ours or the recipe's."""
        self.ended("failed", f"{type(error).__name__}: {error}", FAILED)

    def refused(self, error: UserError) -> None:
        """Says what a person can put right: rank 0 for all; another rank if rank 0 did not fail as well."""
        if not self.leads:
            time.sleep(OTHER_RANK_WAITS_SECONDS)  # if it did, the launcher ends this process meanwhile
        who = "" if self.leads else f"rank {self.rank}: "
        if self.run.is_open:
            self.run.log(f"error: {error}")
        print(f"error: {who}{error}", file=sys.stderr, flush=True)
        self.ended("stopped" if isinstance(error, StoppedError) else "failed", str(error), error.exit_code)

    def no_notices(self, why: str) -> None:
        """The cloud does not say when it takes the machine: said once, with what that means."""
        lost = f"{self.interval():.0f} s" if self.interval else "what was done since the last checkpoint"
        self.say(f"{why}: no notice will come; a stop costs at most {lost}")

    def close(self, code: int, reason: str) -> None:
        """Lets go of the run; called however the attempt went."""
        if not self._ended and self.run.is_open:  # a dry run, and one that was asked to stop before, leave no word
            self.ended("stopped", reason or "left before the end", code)
        elif self._remote:
            self._remote.finish(0.0)
        if self._progress:
            self._progress.close()
        if self.run.is_open:
            with contextlib.suppress(OSError):  # what came after the end is paid for too: uploads, a report
                self.run.event("left")
                self.run.write_status(durable=False)
        self.run.close()
