"""How many images at once: what was asked for, what there is memory for, and what the next attempt must know."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from pitstop.config import RecipeConfig
from pitstop.data.stream import cut, micro_borders
from pitstop.errors import FAILED, StoppedError, UserError
from pitstop.memory import Memory, Shortage, fewer, release
from pitstop.plan import Stream
from pitstop.session import messages
from pitstop.session.alarm import Alarm
from pitstop.session.attempt import Attempt
from pitstop.session.place import Place

PROBE_ON_CPU = "PITSTOP_TEST_PROBE_ON_CPU"  # for tests only: a CPU is probed as a GPU is
RANK_0_SECONDS = 5.0  # in which rank 0 writes down why all end
OUT_OF_MEMORY = "out_of_memory"  # the event


class NextAttemptError(UserError):
    """The attempt ends here and the next one, at once, does it in another way: exit code 1, restart `now`."""

    exit_code = FAILED


class Room:
    """Finds out, before the first step, how many images fit; says and writes down each shortage, and ends the attempt
    where it cannot go on.

    A shortage is remembered in events.jsonl: it holds for the same device, precision and --micro_batch.
    """

    def __init__(self, config: RecipeConfig, attempt: Attempt, place: Place, step: Callable[[], int]) -> None:
        asked = config.micro_batch
        self.memory = Memory(0 if asked == "auto" else int(asked), self._short)
        self._config, self._attempt, self._place, self._step = config, attempt, place, step
        self._holds_for: dict[str, Any] = {"asked": asked, "precision": place.precision.name}
        self._slice, self._state_bytes = 0, 0
        self._alarm = Alarm(self._heard) if place.world > 1 else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hears of a shortage on another rank, and ends the attempt at one that `Memory` does not know of.

        Raises:
            StoppedError, NextAttemptError: see `_short`.
        """
        if self._alarm:
            self._alarm.start()
        try:
            yield
            return
        except torch.OutOfMemoryError as error:
            why = str(error)
        finally:
            if self._alarm:
                self._alarm.stop()
        release()
        images = self._largest()
        self._short(Shortage(images, fewer(images), why, "update"))

    def begin(self, model: nn.Module, optimizer: Optimizer, stream: Stream, shape: dict[str, Any], saved: int) -> None:
        """Before the first step of an attempt, on all ranks: the smallest answer counts.

        Args:
            model: as it is going to be called, in DDP if there are several ranks.
            saved: micro-batch of the checkpoint from which the run continues; 0: all at once, or there is none.
        """
        memory, place = self.memory, self._place
        self._holds_for["device"] = shape["device"]
        memory.micro_batch = place.of_rank_0(self._first(saved) if self._attempt.leads else 0)
        self._slice = max(b - a for a, b in pairwise(cut(stream.batch_size, place.world)))
        self._state_bytes = sum(t.nbytes for p in model.parameters() for t in (p, p)) + sum(
            value.nbytes for kept in optimizer.state.values() for value in kept.values() if torch.is_tensor(value)
        )
        if place.device.type == "cuda" or os.environ.get(PROBE_ON_CPU):
            size_CHW = (stream.dataset.channels, stream.dataset.size, stream.dataset.size)
            while words := place.words(
                memory.fits(model, optimizer, place.precision, size_CHW, self._pieces(memory.micro_batch))
            ):
                self._short(Shortage(self._largest(), fewer(self._largest()), words, "probe"))
                memory.micro_batch = fewer(self._largest())
        stream.micro_batch = memory.micro_batch

    def _first(self, saved: int) -> int:
        """What was asked for, or what the last attempt did; less where it is known that there is no memory for it."""
        wanted = saved if self._config.micro_batch == "auto" else int(self._config.micro_batch)
        known = [
            event["to"]
            for event in self._attempt.run.events()
            if event.get("event") == OUT_OF_MEMORY and event.get("where") != "evaluation"
            if {key: event.get(key) for key in self._holds_for} == self._holds_for
        ]
        return min([images for images in (wanted, *known) if images], default=0)

    def _pieces(self, micro_batch: int) -> list[int]:
        """Of the largest slice of all ranks."""
        return [b - a for a, b in pairwise(micro_borders(self._slice, micro_batch))]

    def _largest(self) -> int:
        return max(self._pieces(self.memory.micro_batch)) if self._slice else 0

    def _short(self, shortage: Shortage) -> None:
        """Raises:
        StoppedError: fewer images cannot be: a person must turn another knob.
        NextAttemptError: the step cannot be repeated: other ranks are in the middle of it, or the weights are.
        """
        step, rank = self._step(), self._place.rank if self._place.world > 1 else None
        note = {"step": step, "where": shortage.where, "from": shortage.images, "to": shortage.fewer, "rank": rank}
        note |= self._holds_for | {"error": shortage.why.splitlines()[0] if shortage.why else ""}
        together = self._place.world > 1 and shortage.where in ("training", "update")
        error: UserError | None = None
        if not shortage.fewer:
            error = StoppedError(self._knobs(shortage))
        elif together or shortage.where == "update":
            error = NextAttemptError(messages.next_attempt(shortage, step, rank))
        self._write(OUT_OF_MEMORY, note)
        if error:
            if self._alarm and shortage.where != "probe":  # of which all ranks know
                self._alarm.ring({"note": note, "code": error.exit_code, "text": str(error)})
            raise error
        self._attempt.say(messages.fewer_images(shortage, step))
        if shortage.where == "training":
            changes = [f"micro_batch: {self.memory.micro_batch} -> {shortage.fewer}"]
            self._write("shape_changed", {"step": step, "changes": changes})

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        if self._attempt.leads and self._attempt.run.is_open:  # an estimate writes nothing
            self._attempt.run.event(event, **fields)

    def _heard(self, rung: dict[str, Any]) -> NoReturn:
        """Another rank cannot go on. In a thread, while this rank's training waits for it: so the process ends here."""
        if self._attempt.leads:
            self._write(OUT_OF_MEMORY, rung["note"])
            errors = (StoppedError, NextAttemptError)
            self._attempt.refused(next(kind for kind in errors if kind.exit_code == rung["code"])(rung["text"]))
        else:
            time.sleep(RANK_0_SECONDS)
        os._exit(rung["code"])

    def _knobs(self, shortage: Shortage) -> str:
        """The floor is reached: what else can be turned, with numbers."""
        config, device, knobs = self._config, self._place.device, list[str]()
        if size := getattr(config, "image_size", None):
            knobs.append(f"--image_size {size // 2} instead of {size} (a quarter of the pixels; it is another run)")
        if self._place.precision.name == "fp32":
            native = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
            knobs.append(f"--precision {'bf16' if native else 'fp16'} instead of fp32 (about half)")
        state = f": weights, gradients and momentum take {self._state_bytes / 1e6:,.0f} MB" if self._state_bytes else ""
        knobs.append(f"a smaller --model than {config.model} (another run too{state})")
        free = ""
        if device.type == "cuda":
            free_bytes, total_bytes = torch.cuda.mem_get_info(device)
            others_bytes = max(0, total_bytes - free_bytes - torch.cuda.memory_reserved(device))
            free = f"{free_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB are free"
            knobs.append(f"an end of what else holds memory there, about {others_bytes / 1e9:.2f} GB (nvidia-smi)")
        return messages.no_room(shortage, free, knobs)
