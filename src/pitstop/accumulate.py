"""One gradient from several micro-batches."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

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
    def micro_batches(self) -> list[tuple[Tensor, Tensor]]: ...


def accumulate(
    model: nn.Module,
    batch: Slice,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    precision: Precision,
) -> Tensor:
    """Adds the gradient of the mean loss over the global batch to the parameters; returns this rank's share.

    The gradient is the sum over samples divided by the global batch size, so ragged slices weigh right; DDP averages
    over ranks, hence the factor. Only the last backward pass communicates (`no_sync`).

    Args:
        criterion: (logits_BK, labels_B) -> the SUM of the losses over the batch.

    Returns:
        float32 scalar on the device, detached, not read: the shares of all ranks add up to the mean loss.
    """
    ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if ddp else (1, 0)
    seed_generators(MODEL_STEP, batch.seed, batch.step, rank, device=batch.micro_batches[0][1].device)
    shares = []
    for number, (images_BCHW, labels_B) in enumerate(batch.micro_batches, 1):
        last = number == len(batch.micro_batches)
        with nullcontext() if last or ddp is None else ddp.no_sync():
            with precision.autocast():
                loss = criterion(model(images_BCHW), labels_B) / batch.global_size
            precision.backward(loss * world if ddp else loss)
        shares.append(loss.detach().float())
    return torch.stack(shares).sum() if len(shares) > 1 else shares[0]
