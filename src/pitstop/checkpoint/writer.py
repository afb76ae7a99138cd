"""Writing checkpoints behind the training: the step pays for a copy, a thread for hash, write, fsync and rename."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pitstop.checkpoint.disk import write
from pitstop.checkpoint.image import Image, Poisoned


@dataclass(frozen=True)
class Saved:
    """What became of one save. `error` is an OSError or Poisoned where the checkpoint does not exist."""

    step: int
    stall_seconds: float
    write_seconds: float
    bytes: int
    error: Exception | None


class Writer:
    """At most one save is in flight. Its long calls release the GIL: memory copies, hashing, writing, fsync."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._image: Image | None = None
        self._infinite: set[str] = set()
        self._thread: threading.Thread | None = None
        self._saved: list[Saved] = []
        self._defects: list[BaseException] = []

    def prepare(self, tensors: dict[str, Tensor]) -> None:
        """Takes the memory for copies of these tensors, before the first paid step and not in the middle. What is
        infinite now (a mask of attention, say) may be so later: it does not poison a checkpoint."""
        self._image = Image(tensors)
        self._image.fill(tensors)
        self._infinite = self._image.arrange()

    @property
    def bytes(self) -> int:
        """Of a state.safetensors, once its size is known."""
        return 0 if self._image is None else len(self._image.file)

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, step: int, tensors: dict[str, Tensor], about: dict[str, Any], before: Callable[[], object]) -> None:
        """Copies the tensors and returns; the thread calls `before` (which makes the metrics durable) and commits.

        `take` the result of the save before first.
        """
        assert self._thread is None, "the last save was not taken yet"
        begun = time.monotonic()
        if self._image is None or not self._image.fits(tensors):  # AdamW makes its state in the first step
            self._image = Image(tensors)
        self._image.fill(tensors)
        stall = time.monotonic() - begun
        arguments = (self._image, step, stall, about, before)
        self._thread = threading.Thread(target=self._run, args=arguments, name="pitstop-save", daemon=True)
        self._thread.start()

    def _run(self, image: Image, step: int, stall: float, about: dict[str, Any], before: Callable[[], object]) -> None:
        begun, size, failed = time.monotonic(), 0, None
        try:
            before()
            if poisoned := sorted(image.arrange() - self._infinite):
                raise Poisoned(poisoned)
            size = write(self._directory, step, image.file, about, keep=self._keep)
        except (OSError, Poisoned) as error:  # a disk that is full or broken, a state that is poisoned
            failed = error
        except BaseException as error:  # a defect: raised where the training looks, not lost with the thread
            self._defects.append(error)
        self._saved.append(Saved(step, stall, time.monotonic() - begun, size, failed))

    def take(self, *, wait: bool = False) -> Saved | None:
        """The result of the save in flight, once, when it is over; None while it is not, or where there is none."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread = None
        if self._defects:
            raise self._defects.pop()
        return self._saved.pop()
