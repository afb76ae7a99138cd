"""One gradient from several micro-batches."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pitstop.randomness import MODEL_STEP, seed_generators


class Precision(Protocol):
    """How to compute; `pitstop.precision.Precision` is one."""

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor) -> None: ...


class Slice(Protocol):
    """What is asked of a batch; `pitstop.data.Batch` is one."""

    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def global_size(self) -> int: ...
    @property
    def micro_batches(self) -> Sequence[tuple[Tensor, Tensor]]: ...


AnySlice = TypeVar("AnySlice", bound=Slice)


class Memory(Protocol[AnySlice]):
    """What to do when the device has no memory left; `pitstop.memory.Memory` is one."""

    def begin(self) -> None: ...
    def cut(self, batch: AnySlice, /) -> AnySlice: ...
    def halve(self, batch: AnySlice, why: str, /) -> None: ...


def accumulate(
    model: nn.Module,
    batch: AnySlice,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    precision: Precision,
    memory: Memory[AnySlice] | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of the mean loss over the global batch to the parameters; returns this rank's share of figures.

    The gradient is the sum over samples divided by the global batch size, so ragged slices weigh right; DDP averages
    over ranks, hence the factor. Only the last backward pass communicates (`no_sync`).

    Args:
        criterion: (logits_BK, targets_B) -> the SUM of the losses over the batch.
        memory: cuts the batch; after torch.OutOfMemoryError all is put back, gradients are cleared, and the batch is
            gone through again in smaller pieces. Without it that error is the caller's.

    Returns:
        "loss" and, where the targets are labels, "accuracy" (on the images as they were augmented): float32 scalars on
        the device, detached, not read. The shares of all ranks add up to the means.
    """
    if memory is None:
        return _gradient(model, batch, criterion, precision)
    while True:
        memory.begin()
        try:
            return _gradient(model, memory.cut(batch), criterion, precision)
        except torch.OutOfMemoryError as error:
            why = str(error)
        memory.halve(batch, why)  # not earlier: the traceback held what the forward pass had kept


def _gradient(
    model: nn.Module, batch: Slice, criterion: Callable[[Tensor, Tensor], Tensor], precision: Precision
) -> dict[str, Tensor]:
    ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if ddp else (1, 0)
    pieces = batch.micro_batches
    seed_generators(MODEL_STEP, batch.seed, batch.step, rank, device=pieces[0][1].device)
    losses, hits = [], []
    for number, (images_BCHW, targets_B) in enumerate(pieces, 1):
        last = number == len(pieces)
        with nullcontext() if last or ddp is None else ddp.no_sync():
            with precision.autocast():
                logits_BK = model(images_BCHW)
                loss = criterion(logits_BK, targets_B) / batch.global_size
            precision.backward(loss * world if ddp else loss)
        losses.append(loss.detach().float())
        if targets_B.ndim == 1:
            hits.append((logits_BK.detach().argmax(1) == targets_B).sum())
    figures = {"loss": _sum(losses)}
    return figures | {"accuracy": _sum(hits) / batch.global_size} if hits else figures


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() if len(values) > 1 else values[0]
