"""Evaluation split over ranks: every sample counts once, and the result does not depend on who computed it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Labelled(Protocol):
    """Images and labels; `pitstop.data.ImageSet` is one."""

    @property
    def images_NCHW(self) -> Tensor: ...
    @property
    def labels_N(self) -> Tensor: ...


View = Callable[[Tensor], Tensor]


def _moved(images_BCHW: Tensor, pixels: int) -> Tensor:
    """Every image moved down and right by `pixels` (negative: up and left), its border mirrored into the gap."""
    size, pad = images_BCHW.shape[-1], abs(pixels)
    padded = functional.pad(images_BCHW, (pad,) * 4, mode="reflect")
    start = pad - pixels
    return padded[:, :, start : start + size, start : start + size]


def _mirrored(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.flip(3)


# Test-time augmentation as in airbench (Keller Jordan): each forward pass sees one view, and an accuracy "with" it adds
# up the logits of the first few, weighed.
VIEWS: tuple[View, ...] = (
    lambda images: images,
    _mirrored,
    lambda images: _moved(images, -1),
    lambda images: _moved(images, 1),
    lambda images: _mirrored(_moved(images, -1)),
    lambda images: _mirrored(_moved(images, 1)),
)
PLAIN = (1.0,)
TTA = {"mirror": (0.5, 0.5), "mirror_shift": (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)}


def _weighed(logits_VBK: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * logits for weight, logits in zip(weights, logits_VBK, strict=False)]).sum(0)


def _gather(mine: Tensor, rank: int, world: int, total: int) -> Tensor:
    """The slices of all ranks, one after the other. Adds up into zeros, so that slices may differ in length."""
    if world == 1:
        return mine
    whole = torch.zeros((total, *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
    whole[total * rank // world : total * (rank + 1) // world] = mine
    torch.distributed.all_reduce(whole)
    return whole


def _broadcast_buffers(model: nn.Module) -> None:
    """All ranks take rank 0's statistics of batch normalisation: each rank has seen other images."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    test: Labelled,
    *,
    normalise: View,
    batch_size: int = 1000,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tta: Sequence[str] = (),
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Mean loss and accuracy (share, 0..1) of a model over uint8 images.

    Args:
        test: uint8 images_NCHW and int64 labels_N, on the device.
        model: as trained; the bare model inside DDP is used. Its statistics become rank 0's.
        normalise: uint8 images_BCHW -> float32 images_BCHW.
        tta: further accuracies, named apart: "mirror", "mirror_shift" (test-time augmentation).
        between: called before each batch, equally often on all ranks; may leave by an exception.

    Returns:
        {"loss", "accuracy", "accuracy_mirror" ...}, the same on every rank.
    """
    ddp = isinstance(model, nn.parallel.DistributedDataParallel)
    bare: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if ddp else (1, 0)
    if ddp:
        _broadcast_buffers(bare)
    sums = {"accuracy": PLAIN} | {f"accuracy_{name}": TTA[name] for name in tta}
    images_NCHW, labels_N = test.images_NCHW, test.labels_N
    total = images_NCHW.shape[0]
    start, stop = total * rank // world, total * (rank + 1) // world
    pieces: dict[str, list[Tensor]] = {name: [] for name in sums}
    bare.eval()
    longest = -(-total // world)  # of the ranks' slices: an empty or shorter one runs an image more, for the shape
    for first in range(start, start + max(1, longest), batch_size):
        between()
        first = min(first, total - 1)
        images_BCHW = normalise(images_NCHW[first : max(min(first + batch_size, stop), first + 1)])
        with autocast():
            logits_VBK = [bare(view(images_BCHW)).float() for view in VIEWS[: max(map(len, sums.values()))]]
        for name, weights in sums.items():
            pieces[name].append(_weighed(logits_VBK, weights))
    bare.train()
    logits_NK = {name: _gather(torch.cat(mine)[: stop - start], rank, world, total) for name, mine in pieces.items()}
    result = {"loss": functional.cross_entropy(logits_NK["accuracy"].double(), labels_N).item()}
    return result | {name: (logits.argmax(1) == labels_N).sum().item() / total for name, logits in logits_NK.items()}
