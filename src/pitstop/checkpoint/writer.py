"""Writing checkpoints behind the training: the step pays for a copy, a thread for hash, write, fsync and rename."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pitstop.checkpoint.disk import write
from pitstop.checkpoint.image import Image, Poisoned


@dataclass(frozen=True)
class Saved:
    """What became of one save. `error` is an OSError, Poisoned or Moved where the checkpoint does not exist."""

    step: int
    stall_seconds: float
    write_seconds: float
    bytes: int
    error: Exception | None


class Moved(RuntimeError):
    """Something else than the optimizer has changed tensors that were said to be still: half of it may be copied."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{names[0]} was changed between `commit` and the optimizer's next step")


class Writer:
    """At most one save is in flight. Its long calls release the GIL: memory copies, hashing, writing, fsync."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._image: Image | None = None
        self._infinite: set[str] = set()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._settled.set()
        self._stall = 0.0  # seconds for which the training has stood for this save
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

    def begin(
        self,
        step: int,
        tensors: dict[str, Tensor],
        still: set[str],
        about: dict[str, Any],
        before: Callable[[], object],
    ) -> None:
        """Takes the values of the tensors; the thread calls `before` (which makes the metrics durable) and commits.

        Those that are `still`, which nothing changes until `settle` returns, the thread copies: beside the forward and
        backward pass of the next step, which only read them (CheckFreq, Mohan et al., FAST 2021). The others are
        copied here. From CUDA all are queued at once. One that is changed all the same fails the save (by autograd's
        version counter, which writes through `.data` pass by). `take` the result of the save before first.
        """
        assert self._thread is None, "the last save was not taken yet"
        begun = time.monotonic()
        if self._image is None or not self._image.fits(tensors):  # AdamW makes its state in the first step
            self._image = Image(tensors)
        later = {name: tensor for name, tensor in tensors.items() if name in still and not tensor.is_cuda}
        self._image.fill({name: tensor for name, tensor in tensors.items() if name not in later})
        self._settled.clear()
        versions = {name: tensor._version for name, tensor in later.items()}
        arguments = (self._image, later, versions, step, about, before)
        self._thread = threading.Thread(target=self._run, args=arguments, name="pitstop-save", daemon=True)
        self._thread.start()
        self._stall = time.monotonic() - begun

    def settle(self) -> None:
        """Returns when every tensor of the save in flight is copied: before anything changes one that was `still`."""
        if not self._settled.is_set():
            begun = time.monotonic()
            self._settled.wait()
            self._stall += time.monotonic() - begun

    def _run(
        self,
        image: Image,
        later: dict[str, Tensor],
        versions: dict[str, int],
        step: int,
        about: dict[str, Any],
        before: Callable[[], object],
    ) -> None:
        begun, size, failed = time.monotonic(), 0, None
        try:
            try:
                image.fill(later)
                moved = [name for name, tensor in later.items() if tensor._version != versions[name]]
            finally:
                self._settled.set()
            if moved:
                raise Moved(moved)
            before()
            if poisoned := sorted(image.arrange() - self._infinite):
                raise Poisoned(poisoned)
            size = write(self._directory, step, image.file, about, keep=self._keep)
        except (OSError, Poisoned, Moved) as error:  # a disk that is full or broken, a state that is not fit
            failed = error
        except BaseException as error:  # a defect: raised where the training looks, not lost with the thread
            self._defects.append(error)
        self._saved.append(Saved(step, 0.0, time.monotonic() - begun, size, failed))

    def take(self, *, wait: bool = False) -> Saved | None:
        """The result of the save in flight, once, when it is over; None while it is not, or where there is none."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread = None
        if self._defects:
            raise self._defects.pop()
        return replace(self._saved.pop(), stall_seconds=self._stall)
