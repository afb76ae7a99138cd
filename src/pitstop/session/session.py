"""One object that carries a run through one attempt."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop import plan, state
from pitstop.checkpoint import write_final
from pitstop.config import RecipeConfig, crossings
from pitstop.data import ImageSet
from pitstop.errors import FINISHED, PERSON_DECIDES, UserError
from pitstop.health import Health
from pitstop.optim import zero_momentum
from pitstop.plan import Stream
from pitstop.record import Metrics
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.identity import differences
from pitstop.session.life import life
from pitstop.session.pace import Pace
from pitstop.session.place import Place
from pitstop.session.rows import Rows
from pitstop.session.saver import Saver
from pitstop.stopper import Stopper

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class Session:
    """Carries one run through one attempt: `restore`, `commit`, `finish`. Use it as `with Session.open(...)`.

    Attributes:
        step: global batches consumed, over all attempts: the only clock. It ends at total_steps, known after `restore`.
        rank, world, device: this process among its kind.
        precision: autocast, the scaled backward pass and the update.
    """

    def __init__(self, config: RecipeConfig, attempt: Attempt, place: Place, stopper: Stopper) -> None:
        self.config = config
        self.step = self.total_steps = 0
        self.rank, self.world, self.device = place.rank, place.world, place.device
        self.precision = place.precision
        self._attempt, self._stopper, self._place = attempt, stopper, place
        self._pace = Pace(self.world, self.device)
        self._health = Health()
        self._metrics = Metrics(attempt.run.path / "metrics.jsonl" if attempt.leads else None, self.world)
        self._saver = Saver(attempt.run, config, self._metrics, stopper, say=attempt.say, saved=attempt.saved)
        attempt.interval = self._saver.interval
        self._owners: dict[str, state.Stateful] = {"scaler": self.precision, "metrics": self._metrics}

    @classmethod
    @contextmanager
    def open(cls, config: RecipeConfig, recipe: str) -> Iterator["Session"]:
        """A session for the recipe in the file `recipe`. Leaves by SystemExit: see `life`."""
        with life(config, Path(recipe)) as parts:
            yield cls(config, *parts)

    @property
    def sources(self) -> dict[str, Any]:
        """How data are brought: arguments of `pitstop.data.load`."""
        return {"may_write": not self.config.dry_run, "say": self.say, "shelf": self._attempt.shelf}

    @property
    def slice(self) -> dict[str, int]:
        """Which part of each batch is this process's: arguments of `pitstop.data.Batches`."""
        return {"rank": self.rank, "world": self.world, "micro_batch": self.config.micro_batch}

    @property
    def evaluation(self) -> dict[str, Any]:
        """How to evaluate in this attempt: arguments of `pitstop.evaluate.evaluate`."""
        batch_size = self.config.micro_batch or 1000
        return {"autocast": self.precision.autocast, "batch_size": batch_size, "between": self._look}

    def say(self, text: str) -> None:
        """Prints a line, once for all ranks, and keeps it in train.log."""
        self._attempt.say(text)

    def own(self, train: ImageSet, test: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Makes the data part of what defines the run, and resident on the device."""
        self._attempt.owns(train.fingerprint, test.fingerprint)
        return train.to(self.device), test.to(self.device)

    def track(self, **owners: state.Stateful) -> None:
        """Further owners of state that every checkpoint holds (an average of the weights, say). Before `restore`."""
        assert not owners.keys() & {"model", "optimizer", *self._owners}, "these names are taken"
        self._owners |= owners

    def prepare(self, model: nn.Module, optimizer: AnyOptimizer) -> tuple[nn.Module, AnyOptimizer]:
        """The model in DDP if there are several processes; the optimizer with its state in being."""
        if self.config.compile:
            model.compile()
        zero_momentum(optimizer)
        self._model, self._optimizer = model, optimizer
        optimizer.register_step_pre_hook(lambda *_: self._saver.before_update())
        return self._place.wrap(model), optimizer

    def restore(self, stream: Stream) -> None:
        """Continues at the newest good checkpoint, or begins: from here on everything is recorded.

        Raises:
            UserError: other data than before, no room on the disk, the directory is in use.
            SystemExit: 0 after --dry_run has printed its plan.
        """
        self._stream, self.total_steps = stream, stream.total_steps(self.config.epochs)
        self._shape = self._place.shape(self.config, self._optimizer)
        if self.config.dry_run:
            run = self._attempt.run.path
            self.say(plan.describe(run, self.config, self._model, stream, self.total_steps, self._shape))
            raise SystemExit(FINISHED)
        begun = time.monotonic()
        tensors, about = self._read() if self._attempt.leads else ({}, None)
        if self.world > 1:
            tensors, about = state.broadcast(tensors, about, self.device)
        if about:
            state.put_back(self._model, self._optimizer, tensors)
            state.join(self._owners, tensors, about["state"])
            self.step = about["step"]
            if self.step > self.total_steps:
                raise UserError(f"{self.step} steps are done, but --epochs asks for {self.total_steps}.")
        self._rows = Rows(self._metrics, self._attempt, stream, self.total_steps)
        self._attempt.start(self._reached, stream.batch_size, self._shape)
        if self._attempt.leads:
            self._restored(about, time.monotonic() - begun)
        self._rows.resume()

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Opens the run directory; tensors and manifest of the newest good checkpoint, if there is one."""
        self._attempt.define()
        live = state.collect(self._model, self._optimizer)
        found = self._saver.find(sum(tensor.nbytes for tensor in live.values()))
        return (found.tensors, found.manifest) if found else ({}, None)

    def _restored(self, about: dict[str, Any] | None, took_seconds: float) -> None:
        """Puts the files where the checkpoint is, and says what is no longer as it was."""
        if missing := self._metrics.open_at(about["metrics_bytes"] if about else 0):
            self.say(f"metrics.jsonl lacks {missing} bytes that the checkpoint knows: rows before it are lost")
        tensors, _ = state.split(self._owners)
        self._saver.ready(self.step if about else -1, tensors | state.collect(self._model, self._optimizer))
        if about is None:
            return
        self._attempt.saved(self.step, about["metrics_bytes"])  # the store and the tracker may lack it
        self._attempt.run.event("restore", step=self.step, seconds=round(took_seconds, 3))
        if changes := differences(about["shape"], self._shape):
            self._attempt.run.event("shape_changed", step=self.step, changes=changes)
            self.say(messages.shape_changes(changes))

    def _reached(self) -> dict[str, Any]:
        return {"step": self.step, "total_steps": self.total_steps, "trained": round(self._rows.clock.seconds, 3)}

    def due(self, every_epochs: float) -> bool:
        """Is this the first step whose start reaches a border of `every_epochs`? Computed from the step alone."""
        batch, length = self._stream.batch_size, self._stream.epoch_length
        before, now = (crossings(every_epochs, length, batch * max(0, step)) for step in (self.step - 1, self.step))
        if due := now > before:
            self._saver.before_update()  # who evaluates may put other weights into the model
        return due

    def commit(self, metrics: dict[str, Tensor]) -> None:
        """Ends a step: counts it, records it, saves when due, leaves when asked to.

        Args:
            metrics: scalar tensors on the device, this rank's share of each: the shares of all ranks add up.

        Raises:
            SystemExit: 75 or 76, after a checkpoint, if someone wants the run to stop.
        """
        self.step += 1
        self._metrics.add(metrics)
        self._health.add(metrics.values(), self.precision.overflow)
        self._rows.stepped()
        self._stopper.arm()  # before its first step an attempt has nothing to lose: a signal ended it at once
        last = self.step == self.total_steps
        if last or self.step % self.config.log_every == 0:
            self._rows.train(self.step, self._optimizer.param_groups[0]["lr"])
        self._saver.poll(self._rows.clock)
        stop, save = 0.0, last or self._saver.due_at(self.step)
        if not last and self._pace.due(self.step):
            stop, by_clock = self._wishes()
            save = save or bool(by_clock)
        if stop:
            self._stop(int(stop))
        if save:
            self._save()
            self._rows.resume()

    def _wishes(self) -> Sequence[float]:
        """(exit code or 0, save now): of all ranks, who must do the same."""
        if self._pace.may_read() and (why := self._health.complaint(self.precision.name, self.config.clip_grad_norm)):
            self._stopper.request(f"{why}. Of the checkpoints, {self._saver.last_good}", PERSON_DECIDES)
        by_clock = self._stopper.save_soon or (self._attempt.leads and self._saver.due_now())
        return self._pace.agree(self.step, [self._stopper.look(), by_clock], self._rows.step_seconds)

    def _look(self) -> None:
        """Between two batches of an evaluation, on all ranks: leaves if someone wants a stop. The next attempt
        continues at this very step, and evaluates anew."""
        if stop := self._pace.most(self._stopper.look()):
            self._stop(int(stop))

    def evaluated(self, result: dict[str, float]) -> None:
        """Records an evaluation at this step."""
        self._rows.evaluation(self.step, result)

    def _save(self) -> None:
        """Called by all ranks at the same step; rank 0 writes, behind the next steps."""
        tensors, values = state.split(self._owners)
        self._stopper.save_soon = False
        if self._attempt.leads:
            tensors |= state.collect(self._model, self._optimizer)
            still = state.changed_by_updates(self._model, tensors)
            self._saver.begin(self.step, tensors, still, {"shape": self._shape, "state": values}, self._rows.clock)

    def _stop(self, code: int) -> None:
        """Checkpoint, status, and then the tracker and the store with the time that is left."""
        self._save()
        self._wait_for_save()  # it may fail, and want a person
        code = int(self._pace.most(max(code, self._stopper.exit_code)))
        reason = self._stopper.reason or "another rank was asked to"
        self.say(messages.stopped(self.step, self.total_steps, reason, self._saver.step))
        self._attempt.ended("stopped", reason, code)
        self._place.part()
        raise SystemExit(code)

    def _wait_for_save(self) -> None:
        if self._attempt.leads:
            self._saver.poll(self._rows.clock, wait=True)

    def finish(self, result: dict[str, float], card: dict[str, Any]) -> None:
        """Ends the run: `final/`, the last row of metrics, status `finished`.

        Args:
            result: of the final evaluation.
            card: what is needed to use the model, written as final/model.json (see `pitstop.models.card`).
        """
        self._wait_for_save()
        if self._place.of_rank_0(self._saver.poisoned):
            self._stop(PERSON_DECIDES)
        self.evaluated(result)
        if self._attempt.leads:
            run = self._attempt.run
            write_final(run.path / "final", self._model.state_dict(), card)
            self._metrics.sync()
            self._attempt.recorded(self._metrics.flush())
            self._attempt.ended("finished", "", FINISHED, result=result)
            self.say(messages.finished(run.path, run.status()))
        self._place.part()
