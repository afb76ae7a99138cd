"""One object that carries a run through one attempt."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop import plan, state
from pitstop.config import RecipeConfig
from pitstop.errors import FINISHED, PERSON_DECIDES, UserError
from pitstop.optim import zero_momentum
from pitstop.plan import Stream
from pitstop.record import Metrics
from pitstop.selection import Best
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.life import life
from pitstop.session.pace import reaches
from pitstop.session.place import Place
from pitstop.session.restoring import put_back, settle
from pitstop.session.results import DataSet, Results
from pitstop.session.room import Room
from pitstop.session.rows import Rows
from pitstop.session.saver import Saver
from pitstop.session.wishes import Wishes
from pitstop.stopper import Stopper

S = TypeVar("S", bound=DataSet)
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class Session:
    """Carries one run through one attempt: `restore`, `commit`, `finish`. Use it as `with Session.open(...)`.

    Attributes:
        step: global batches consumed, over all attempts: the only clock. It ends at total_steps, known after `restore`.
        rank, world, device: this process among its kind.
        precision: autocast, the scaled backward pass and the update.
        memory: how many images go through the model at once.
    """

    def __init__(self, config: RecipeConfig, attempt: Attempt, place: Place, stopper: Stopper) -> None:
        self.config = config
        self.step = self.total_steps = 0
        self.rank, self.world, self.device = place.rank, place.world, place.device
        self.precision = place.precision
        self._attempt, self._stopper, self._place = attempt, stopper, place
        self._room = Room(config, attempt, place, lambda: self.step)
        self.memory = self._room.memory
        self._metrics = Metrics(attempt.run.path / "metrics.jsonl" if attempt.leads else None, self.world)
        self._saver = Saver(attempt.run, config, self._metrics, stopper, say=attempt.say, saved=attempt.saved)
        self._wishes = Wishes(config, place, stopper, self._saver)
        attempt.interval = self._saver.interval
        self._results = Results(config, attempt)
        self._owners: dict[str, state.Stateful] = {"scaler": self.precision, "metrics": self._metrics}
        self._owners["samples"] = self._results.samples

    @classmethod
    @contextmanager
    def open(cls, config: RecipeConfig, recipe: str) -> Iterator["Session"]:
        """A session for the recipe in the file `recipe`. Leaves by SystemExit: see `life`."""
        from pitstop.session.rehearsal import Rehearsal  # which is a Session

        with life(config, Path(recipe)) as parts:
            session = Rehearsal(config, *parts) if config.estimate else cls(config, *parts)
            with session._room.watched():
                yield session

    @property
    def sources(self) -> dict[str, Any]:
        """How data are brought: arguments of `pitstop.data.load`."""
        return {"may_write": not self.config.dry_run, "say": self.say, "shelf": self._attempt.shelf}

    @property
    def slice(self) -> dict[str, int]:
        """Which part of each batch is this process's: arguments of `pitstop.data.Batches`."""
        return {"rank": self.rank, "world": self.world, "micro_batch": self.memory.micro_batch}

    @property
    def evaluation(self) -> dict[str, Any]:
        """How to evaluate in this attempt: arguments of `pitstop.evaluate.evaluate`."""
        how = {"autocast": self.precision.autocast, "in_pieces": self.memory.in_pieces, "between": self._look}
        return {**how, "batch_size": self.memory.micro_batch or 1000}

    def say(self, text: str) -> None:
        """Prints a line, once for all ranks, and keeps it in train.log."""
        self._attempt.say(text)

    def own(self, train: S, *others: S | None, held_out: Any = None, **also: Any) -> tuple[S | None, ...]:
        """Makes the data part of what defines the run, and resident on the device; None (no test set) stays None.

        `held_out`, what was taken out of train, is written to held_out.json; `also` are JSON values that define the run
        as well, by name: where the weights are from, say.
        """
        self._attempt.definition.owns(self._results.given(train, [each for each in others if each], held_out) | also)
        return tuple(each and each.to(self.device) for each in (train, *others))

    def keep(self, best: Best, judged: nn.Module, card: dict[str, Any], **owners: state.Stateful | None) -> None:
        """The best weights of `judged`, the model that is evaluated, are kept in best/, whatever happens. Before
        `restore`; `owners` as for `track`, without those that are None."""
        self.track(best=best, **{name: owner for name, owner in owners.items() if owner is not None})
        self._results.keep(best, judged, card)

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
        self._wrapped = self._place.wrap(model)  # which may give it other buffers
        self.memory.attach(model)
        return self._wrapped, optimizer

    def restore(self, stream: Stream) -> None:
        """Continues at the newest good checkpoint, or begins: from here on everything is recorded.

        Raises:
            UserError: other data than before, no room on the disk, the directory is in use.
            SystemExit: 0 after --dry_run has printed its plan.
        """
        self._stream, self.total_steps = stream, stream.total_steps(self.config.epochs)
        self._shape = self._place.shape(self.config, self._optimizer, self.memory.micro_batch)
        if self.config.dry_run:
            path, size = self._attempt.run.path, self._state_bytes()
            self.say(plan.describe(path, self.config, self._model, stream, self.total_steps, self._shape, size))
            raise SystemExit(FINISHED)
        begun = time.monotonic()
        about = put_back(self._attempt, self._place, self._saver, self._model, self._optimizer, self._owners)
        self.step = about["step"] if about else 0
        if self.step > self.total_steps:
            raise UserError(f"{self.step} steps are done, but --epochs asks for {self.total_steps}.")
        saved = about["shape"]["micro_batch"] if about else 0
        self._room.begin(self._wrapped, self._optimizer, stream, self._shape, saved)
        self._shape["micro_batch"] = self.memory.micro_batch
        self._rows = Rows(self._metrics, self._attempt, stream, self.total_steps, self.device)
        self._attempt.start(self._reached, stream.batch_size, self._shape)
        if self._attempt.leads:
            settle(about, begun, self._shape, self._metrics, self._attempt, self._saver, self._tensors())
            self._results.restored()
            self._results.look_at_input(self._model, self.step)
        self._rows.resume()

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return state.split(self._owners)[0] | state.collect(self._model, self._optimizer)

    def _state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _reached(self) -> dict[str, Any]:
        return {"step": self.step, "total_steps": self.total_steps, "trained": round(self._rows.clock.seconds, 3)}

    def due(self, every_epochs: float) -> bool:
        """Is this the first step whose start reaches a border of `every_epochs`? Computed from the step alone."""
        if due := reaches(every_epochs, self._stream, self.step):
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
        self._wishes.step(metrics)
        self._metrics.add(metrics | {name: same / self.world for name, same in self.precision.figures.items()})
        self._rows.stepped()
        last = self.step == self.total_steps
        if last or self.step % self.config.log_every == 0:
            lr, media = self._optimizer.param_groups[0]["lr"], self._results.samples.media(self.step)
            self._results.row(*self._rows.train(self.step, lr, media))
        self._saver.poll(self._rows.clock)
        stop, save = (0, True) if last else self._wishes.after(self.step, self._rows.step_seconds)
        self._stopper.arm()  # all ranks have agreed: none leaves at once any more, while others wait for it
        if stop:
            self._stop(stop)
        if save or self._saver.due_at(self.step):
            self._save()
            self._rows.resume()

    def _look(self) -> None:
        """Between two batches of an evaluation: leaves if someone wants a stop. The next attempt evaluates anew."""
        if stop := self._wishes.stop():
            self._stop(stop)

    def evaluated(self, result: Mapping[str, float]) -> bool:
        """Records an evaluation at this step. False: what `keep` was given has lost its patience; end here."""
        epoch = self._rows.evaluation("eval", self.step, result, lambda: self._results.by_class(result))
        goes_on = self._results.evaluated(self.step, epoch, result)
        self._rows.resume()
        return goes_on

    def _save(self) -> None:
        """Called by all ranks at the same step; rank 0 writes, behind the next steps."""
        tensors, values = state.split(self._owners)
        self._stopper.save_soon = False
        if self._attempt.leads:
            self._shape["micro_batch"] = self.memory.micro_batch
            tensors |= state.collect(self._model, self._optimizer)
            still = state.changed_by_updates(self._model, tensors)
            self._saver.begin(self.step, tensors, still, {"shape": self._shape, "state": values}, self._rows.clock)

    def _stop(self, code: int) -> None:
        """Checkpoint, status, and then the tracker and the store with the time that is left."""
        self._save()
        self._saver.poll(self._rows.clock, wait=True)  # it may fail, and want a person
        code = self._wishes.code(code)
        reason = self._stopper.reason or "another rank was asked to"
        self.say(messages.stopped(self.step, self.total_steps, reason, self._saver.step))
        self._attempt.ended("stopped", reason, code)
        self._place.part()
        raise SystemExit(code)

    def finish(
        self, result: Mapping[str, float], card: dict[str, Any], judged: nn.Module | None = None, split: str = ""
    ) -> None:
        """Ends the run: `final/`, pictures, the last row of metrics, status `finished`.

        Args:
            result: of the final evaluation.
            card: what is needed to use the model, written as final/model.json (see `pitstop.models.card`).
            judged: whose weights go to final/: an average of them, say; default: the model that was trained.
            split: "test", if these images were not looked at before: the row is then of this kind.
        """
        self._saver.poll(self._rows.clock, wait=True)
        if self._place.of_rank_0(self._saver.poisoned):
            self._stop(PERSON_DECIDES)
        how = (self.step, result, split or "test", judged or self._model, card)
        self.total_steps = self.step  # fewer than planned, if patience was lost
        self._rows.evaluation(split or "eval", self.step, result, lambda: self._results.finished(*how))
        if self._attempt.leads:
            self._metrics.sync()
            self._attempt.recorded(self._metrics.flush())
            self._attempt.ended("finished", "", FINISHED, result=dict(result), split=split or "test")
            self._results.told()
        self._place.part()
