"""How many images go through the model at once, and what follows when there is no memory for so many."""

import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer


class Precision(Protocol):
    """How to compute; `pitstop.precision.Precision` is one."""

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor) -> None: ...


class Slice(Protocol):
    """What is asked of a batch, a dataclass that is cut when it is used; `pitstop.data.Batch` is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def micro_batch(self) -> int: ...
    @property
    def micro_batches(self) -> Sequence[tuple[Tensor, Tensor]]: ...


AnySlice = TypeVar("AnySlice", bound=Slice)


@dataclass(frozen=True)
class Shortage:
    """There was no memory for so many images at once.

    Attributes:
        fewer: half of them; 0: fewer cannot be.
        why: torch's words.
        where: probe, training, update or evaluation.
    """

    images: int
    fewer: int
    why: str
    where: str


def fewer(images: int) -> int:
    """Half as many images at once, an even number; 0 where fewer cannot be: batch normalisation needs two, and a slice
    of three is in one piece (see `pitstop.data.stream.cut`)."""
    return max(2, images // 4 * 2) if images > 3 else 0


def release() -> None:
    """Gives back what a failed pass held. To be called after the `except` block, whose traceback holds it as well."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing, without a GPU


class Memory:
    """The most images at once, from probe to last evaluation; halves it where the device has no memory left.

    Args:
        micro_batch: to begin with; 0: the whole slice.
        short: told of each shortage before the smaller piece is tried; ends the attempt by an exception where that is
            of no use, or one rank alone cannot do it.
    """

    def __init__(self, micro_batch: int, short: Callable[[Shortage], None]) -> None:
        self.micro_batch, self._short = micro_batch, short
        self._evaluation = 0  # images at once; 0: as many as come
        self._parameters: list[nn.Parameter] = []
        self._buffers: list[tuple[list[Tensor], list[Tensor]]] = []  # live and kept, by type

    def attach(self, model: nn.Module) -> None:
        """The model that is going to be trained, on its device. Its buffers (the statistics of batch normalisation)
        must stay the same tensors: they are looked up here once, since that takes as long as to copy them."""
        self._parameters = list(model.parameters())
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in model.buffers():
            kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._buffers = [(live, [torch.empty_like(buffer) for buffer in live]) for live in kinds.values()]

    @torch.no_grad()
    def begin(self) -> None:
        """Before a forward pass changes the buffers: keeps them, by one kernel for each type, without waiting."""
        for live, kept in self._buffers:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def undo(self) -> None:
        """All is as it was at `begin`, and there are no gradients."""
        for live, kept in self._buffers:
            torch._foreach_copy_(live, kept)
        for parameter in self._parameters:
            parameter.grad = None

    def cut(self, batch: AnySlice) -> AnySlice:
        """The batch in pieces of as many images as there is memory for; a loader may have cut it before that was
        known."""
        return batch if batch.micro_batch == self.micro_batch else replace(batch, micro_batch=self.micro_batch)

    def halve(self, batch: Slice, why: str) -> None:
        """A pass over the batch has found no memory: the same step begins anew, in smaller pieces."""
        self.undo()
        release()
        images = max(len(targets_B) for _, targets_B in self.cut(batch).micro_batches)
        self._short(Shortage(images, fewer(images), why, "training"))
        self.micro_batch = fewer(images)

    def in_pieces(self, forward: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Tensor:
        """`forward` [V, B, K] of an evaluation, over as many images at once as there is memory for. In evaluation the
        images do not see each other, so the pieces have no minimum."""
        images = min(self._evaluation or len(images_BCHW), len(images_BCHW))
        while True:
            try:
                return torch.cat([forward(piece_BCHW) for piece_BCHW in torch.split(images_BCHW, images)], dim=1)
            except torch.OutOfMemoryError as error:
                why = str(error)
            release()
            self._short(Shortage(images, images // 2, why, "evaluation"))
            images = self._evaluation = images // 2

    def fits(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        size_CHW: tuple[int, int, int],
        pieces: Sequence[int],
    ) -> str:
        """Tries a step over a slice of zeros, cut into `pieces`: nothing, or torch's words where there is no memory.

        What is in memory in a step is there: the slice, gradients, what the optimizer is going to keep. Changes no
        state: neither buffers, nor gradients, nor generators; of several ranks none waits for another.
        """
        device = self._parameters[0].device
        why = ""
        self.begin()
        alone = model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), alone:
            try:
                _try(model, precision, size_CHW, pieces, device, _bytes_to_come(self._parameters, optimizer))
            except torch.OutOfMemoryError as error:
                why = str(error)
        self.undo()
        if why:
            release()
        return why


def _try(
    model: nn.Module,
    precision: Precision,
    size_CHW: tuple[int, int, int],
    pieces: Sequence[int],
    device: torch.device,
    beside_bytes: int,
) -> None:
    slice_NCHW = torch.zeros(sum(pieces), *size_CHW, device=device).to(memory_format=torch.channels_last)
    beside = torch.empty(beside_bytes, dtype=torch.uint8, device=device)
    # The largest piece; and once more beside gradients, which the first has left, if there are several.
    images_BCHW = slice_NCHW[: max(pieces)]
    labels_B = torch.zeros(max(pieces), dtype=torch.int64, device=device)
    for _ in pieces[:2]:
        with precision.autocast():
            loss = functional.cross_entropy(model(images_BCHW), labels_B, reduction="sum")
        precision.backward(loss)
    del beside


def _bytes_to_come(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> int:
    """What an optimizer is going to keep that makes its state in its first step: of Adam and its kin two values for
    each weight. SGD has its momentum already (see `pitstop.optim.zero_momentum`), as has one that continues."""
    if optimizer.state or isinstance(optimizer, SGD):
        return 0
    return 2 * sum(parameter.nbytes for parameter in parameters)
