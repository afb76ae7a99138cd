"""One object that carries a run through one attempt."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop import machine, plan, state
from pitstop.checkpoint import write_final
from pitstop.config import RecipeConfig, crossings
from pitstop.data import ImageSet
from pitstop.errors import FAILED, FINISHED, PERSON_DECIDES, UserError
from pitstop.optim import zero_momentum
from pitstop.record import Metrics
from pitstop.rundir import now
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.identity import differences
from pitstop.session.pace import Pace
from pitstop.session.place import Place, find, launched_rank
from pitstop.session.saver import Saver
from pitstop.stopper import Stopper

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class Stream(Protocol):
    """What is asked of the batches: `pitstop.data.Batches`, or whatever else counts in global batches."""

    @property
    def batch_size(self) -> int: ...
    @property
    def epoch_length(self) -> int: ...
    def total_steps(self, epochs: float) -> int: ...


class Session:
    """Carries one run through one attempt: `restore`, `commit`, `finish`. Use it as `with Session.open(...)`.

    Attributes:
        step: global batches consumed, over all attempts: the only clock of the run.
        total_steps: where the run ends; known after `restore`.
        rank, world, device: this process among its kind.
        precision: autocast, the scaled backward pass and the update.
    """

    def __init__(self, config: RecipeConfig, attempt: Attempt, place: Place, stopper: Stopper) -> None:
        self.config = config
        self.step = self.total_steps = 0
        self.rank, self.world, self.device = place.rank, place.world, place.device
        self.precision = place.precision
        self._attempt, self._stopper, self._accelerator = attempt, stopper, place.accelerator
        self._pace = Pace(self.world, self.device)
        run = attempt.run
        self._metrics = Metrics(run.path / "metrics.jsonl" if attempt.leads else None, self.world)
        self._saver = Saver(run, every=config.save_every, keep=config.keep, stopper=stopper, say=attempt.say)
        self._owners: dict[str, state.Stateful] = {"scaler": self.precision, "metrics": self._metrics}
        self._lap_steps, self._lap_seconds = 0, 0.0  # since the last row of metrics, without evaluations and saves

    @classmethod
    @contextmanager
    def open(cls, config: RecipeConfig, recipe: str) -> Iterator["Session"]:
        """A session for the recipe in the file `recipe`.

        Raises:
            SystemExit: 0 the run was finished before; 2 a person must put something right; 75 stopped, start again;
                76 stopped, a person decides.
        """
        stopper = Stopper()
        stopper.install()
        attempt = Attempt(config, Path(recipe), launched_rank())
        try:
            attempt.look()
            yield cls(config, attempt, find(config), stopper)
        except UserError as error:
            attempt.refused(error)
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            attempt.ended("failed", f"{type(error).__name__}: {error}", FAILED)
            raise
        finally:
            attempt.close(stopper.exit_code or PERSON_DECIDES)
            stopper.uninstall()

    @property
    def slice(self) -> dict[str, int]:
        """Which part of each batch is this process's: arguments of `pitstop.data.Batches`."""
        return {"rank": self.rank, "world": self.world, "micro_batch": self.config.micro_batch}

    def say(self, text: str) -> None:
        """Prints a line, once for all ranks, and keeps it in train.log."""
        self._attempt.say(text)

    def own(self, train: ImageSet, test: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Makes the data part of what defines the run, and resident on the device."""
        self._attempt.definition["data_set"] = {"train": train.fingerprint, "test": test.fingerprint}
        return train.to(self.device), test.to(self.device)

    def track(self, **owners: state.Stateful) -> None:
        """Further owners of state that every checkpoint holds (an average of the weights, say). Before `restore`."""
        self._owners |= owners

    def prepare(self, model: nn.Module, optimizer: AnyOptimizer) -> tuple[nn.Module, AnyOptimizer]:
        """The model in DDP if there are several processes; the optimizer with its state in being."""
        if self.config.compile:
            model.compile()
        zero_momentum(optimizer)
        self._model, self._optimizer = model, optimizer
        return self._accelerator.prepare_model(model), optimizer

    def restore(self, stream: Stream) -> None:
        """Continues at the newest good checkpoint, or begins: from here on everything is recorded.

        Raises:
            UserError: other data than before, no room on the disk, the directory is in use.
            SystemExit: 0 after --dry_run has printed its plan.
        """
        self._stream, self.total_steps = stream, stream.total_steps(self.config.epochs)
        if self.config.dry_run:
            if self._attempt.leads:
                print(plan.describe(self._attempt.run.path, self.config, self._model, stream, self.total_steps, self._shape))
            raise SystemExit(FINISHED)
        begun = time.monotonic()
        tensors: dict[str, Tensor] = {}
        about: dict[str, Any] | None = None
        if self._attempt.leads:
            self._attempt.open()
            live = state.collect(self._model, self._optimizer)
            self._saver.check_space(sum(tensor.nbytes for tensor in live.values()))
            if found := self._saver.find():
                tensors, about = found.tensors, found.manifest
        if self.world > 1:
            tensors, about = state.broadcast(tensors, about, self.device)
        if about:
            state.put_back(self._model, self._optimizer, tensors)
            state.join(self._owners, tensors, about["state"])
            self.step = about["step"]
        self._attempt.start(self._reached, stream.batch_size, self._shape)
        if self._attempt.leads:
            self._restored(about, time.monotonic() - begun)
        self._stopper.arm()
        self._tick = time.monotonic()

    def _restored(self, about: dict[str, Any] | None, took_seconds: float) -> None:
        """Puts the files where the checkpoint is, and says what is no longer as it was."""
        missing = self._metrics.open_at(about["metrics_bytes"] if about else 0)
        if missing:
            self.say(f"metrics.jsonl lacks {missing} bytes that the checkpoint knows: rows before step {self.step} are lost")
        if about is None:
            return
        self._saver.in_use(self.step)
        self._attempt.run.event("restore", step=self.step, seconds=round(took_seconds, 3))
        if changes := differences(about["shape"], self._shape):
            self._attempt.run.event("shape_changed", step=self.step, changes=changes)
            self.say(messages.shape_changes(changes))

    @property
    def _shape(self) -> dict[str, Any]:
        return machine.shape(
            self.device,
            self.world,
            precision=self.precision.name,
            micro_batch=self.config.micro_batch,
            optimizer=machine.optimizer_kind(self._optimizer),
            compile=self.config.compile,
            deterministic=self.config.deterministic,
        )

    def _reached(self) -> dict[str, Any]:
        return {"step": self.step, "total_steps": self.total_steps}

    @property
    def epoch(self) -> float:
        """Passes over the training images, so far."""
        return self.step * self._stream.batch_size / self._stream.epoch_length

    def due(self, every_epochs: float) -> bool:
        """Is this the first step whose start reaches a border of `every_epochs`? Computed from the step alone."""
        before, here = ((s * self._stream.batch_size) for s in (max(0, self.step - 1), self.step))
        length = self._stream.epoch_length
        return crossings(every_epochs, length, here) > crossings(every_epochs, length, before)

    def commit(self, metrics: dict[str, Tensor]) -> None:
        """Ends a step: counts it, records it, saves when due, leaves when asked to.

        Args:
            metrics: scalar tensors on the device, this rank's share of each: the shares of all ranks add up.

        Raises:
            SystemExit: 75 or 76, after a checkpoint, if someone wants the run to stop.
        """
        self.step += 1
        self._metrics.add(metrics)
        self._lap_steps += 1
        self._attempt.stepped()
        last = self.step == self.total_steps
        if last or self.step % self.config.log_every == 0:
            self._train_row()
        wishes = {"stop": 0.0, "save": float(last or self._saver.due_at(self.step))}
        if not last and self._pace.due(self.step):
            mine = {"stop": float(self._stopper.exit_code), "save": wishes["save"] or float(self._saver.due_now())}
            elapsed = self._lap_seconds + time.monotonic() - self._tick
            wishes = self._pace.agree(self.step, mine, elapsed / max(1, self._lap_steps))
        if wishes["save"] or wishes["stop"]:
            self._lap()
            self._save()
            self._tick = time.monotonic()
        if wishes["stop"]:
            self._stop(int(wishes["stop"]))

    def _lap(self) -> None:
        """Counts the time up to here as training."""
        self._lap_seconds += time.monotonic() - self._tick
        self._tick = time.monotonic()

    def _train_row(self) -> None:
        means = self._metrics.means()  # reads the device: what was asked of it before is done now
        self._lap()
        speed = self._lap_steps * self._stream.batch_size / self._lap_seconds
        self._lap_steps, self._lap_seconds = 0, 0.0
        lr = self._optimizer.param_groups[0]["lr"]
        self._write("train", {**means, "lr": lr, "images_per_second": round(speed, 1)})
        left = messages.duration((self.total_steps - self.step) * self._stream.batch_size / speed)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._attempt.row(self.step, f"epoch {self.epoch:.2f}  {shown}  {speed:,.0f} images/s  {left} left")

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        self._metrics.write({"kind": kind, "step": self.step, "epoch": round(self.epoch, 6), **fields, "time": now()})

    def evaluated(self, result: dict[str, float]) -> None:
        """Records an evaluation at this step."""
        took = time.monotonic() - self._tick
        self._write("eval", {**result, "seconds": round(took, 3)})
        self.say(f"step {self.step}  epoch {self.epoch:.2f}  {messages.result_line(result)}")
        self._tick = time.monotonic()

    def _save(self) -> None:
        """Called by all ranks at the same step; rank 0 writes."""
        tensors, values = state.split(self._owners)
        self._saver.passed()
        if self._attempt.leads and self._saver.step != self.step:
            tensors |= state.collect(self._model, self._optimizer)
            about = {
                "attempt": self._attempt.run.attempt,
                "shape": self._shape,
                "metrics_bytes": self._metrics.sync(),
                "state": values,
            }
            if self._saver.save(self.step, tensors, about):
                self._attempt.sent(self._metrics.take_unsent())
            self._attempt.run.write_status(**self._reached())

    def _stop(self, code: int) -> None:
        reason = self._stopper.reason or "another rank was asked to stop"
        failed = code == FAILED
        self.say(f"stopped at step {self.step} of {self.total_steps} ({reason}); the same command continues")
        self._attempt.ended("failed" if failed else "stopped", reason, code, **self._reached())
        raise SystemExit(code)

    def finish(self, result: dict[str, float], card: dict[str, Any]) -> None:
        """Ends the run: `final/`, the last row of metrics, status `finished`.

        Args:
            result: of the final evaluation.
            card: what is needed to use the model, written as final/model.json (see `pitstop.models.card`).
        """
        self.evaluated(result)
        if self._attempt.leads:
            run = self._attempt.run
            write_final(run.path / "final", self._model.state_dict(), card)
            self._metrics.sync()
            self._attempt.sent(self._metrics.take_unsent())
            self._attempt.ended("finished", "", FINISHED, **self._reached(), result=result)
            self.say(messages.finished(run.path, run.status()))
        if self.world > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
