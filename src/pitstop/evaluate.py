"""Evaluation split over ranks: every sample counts once, and the result does not depend on who computed it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Labelled(Protocol):
    """Images and labels; `pitstop.data.ImageSet` is one."""

    @property
    def labels_N(self) -> Tensor: ...
    def read(self, spans: Sequence[tuple[int, int]], /) -> Iterator[Tensor]: ...


class Evaluation(dict[str, float]):
    """Figures by name, and what they were computed from.

    Attributes:
        logits_NK: float32, on the CPU, in the order of `images`.
        labels_N: int64, on the CPU.
        images: what was evaluated.
    """

    def __init__(self, figures: Mapping[str, float], logits_NK: Tensor, images: Labelled) -> None:
        super().__init__(figures)
        self.logits_NK, self.labels_N, self.images = logits_NK.cpu(), images.labels_N.cpu(), images

    @property
    def counts_K(self) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [K] each: of a class the images that were taken for it rightly, its images, and all taken for it."""
        predicted_N, classes = self.logits_NK.argmax(1), self.logits_NK.shape[1]
        of = (self.labels_N[predicted_N == self.labels_N], self.labels_N, predicted_N)
        hits_K, support_K, predicted_K = (torch.bincount(each, minlength=classes) for each in of)
        return hits_K, support_K, predicted_K


def macro(hits_K: Tensor, support_K: Tensor, predicted_K: Tensor) -> dict[str, float]:
    """Means over the classes that have images, each counting alike: recall (balanced accuracy) and F1.

    Of `Evaluation.counts_K`: a matrix of 10,000 x 10,000 classes would take 800 MB.
    """
    hits_K, support_K = hits_K.double(), support_K.double()
    there_K = support_K > 0
    f1_K = 2 * hits_K / (support_K + predicted_K).clamp(min=1)
    return {"macro_recall": (hits_K / support_K)[there_K].mean().item(), "macro_f1": f1_K[there_K].mean().item()}


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


def _forward(model: nn.Module, images_BCHW: Tensor, views: Sequence[View]) -> Tensor:
    """float32 logits_VBK."""
    return torch.stack([model(view(images_BCHW)).float() for view in views])


def _weighed(logits_VBK: Tensor, weights: Sequence[float]) -> Tensor:
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
    by_class: bool = False,
    between: Callable[[], object] = lambda: None,
    in_pieces: Callable[[View, Tensor], Tensor] = lambda forward, images_BCHW: forward(images_BCHW),
) -> Evaluation:
    """Mean loss and accuracy (share, 0..1) of a model over uint8 images.

    Args:
        test: uint8 images and int64 labels_N, on the device.
        model: as trained; the bare model inside DDP is used. Its statistics become rank 0's; all ranks call this.
        normalise: uint8 images_BCHW -> float32 images_BCHW.
        tta: further accuracies, named apart: "mirror", "mirror_shift" (test-time augmentation).
        by_class: also the figures of `macro`.
        between: called before each batch, equally often on all ranks; may leave by an exception.
        in_pieces: calls (forward, images_BCHW) for fewer images at once if need be; see `pitstop.memory.Memory`.

    Returns:
        {"loss", "accuracy", "accuracy_mirror" ...}, the same on every rank.
    """
    bare: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    shared = torch.distributed.is_initialized()  # not by DDP: an average of the weights has none around it
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if shared else (1, 0)
    if shared:
        _broadcast_buffers(bare)
    sums = {"accuracy": PLAIN} | {f"accuracy_{name}": TTA[name] for name in tta}
    total = len(test.labels_N)
    start, stop = total * rank // world, total * (rank + 1) // world
    pieces: dict[str, list[Tensor]] = {name: [] for name in sums}
    views = VIEWS[: max(map(len, sums.values()))]
    bare.eval()
    for images_BCHW in test.read(_spans(start, stop, total, world, batch_size)):
        between()
        with autocast():
            logits_VBK = in_pieces(lambda images_BCHW: _forward(bare, normalise(images_BCHW), views), images_BCHW)
        for name, weights in sums.items():
            pieces[name].append(_weighed(logits_VBK, weights))
    bare.train()
    logits_NK = {name: _gather(torch.cat(mine)[: stop - start], rank, world, total) for name, mine in pieces.items()}
    evaluation = Evaluation(_figures(logits_NK, test.labels_N), logits_NK["accuracy"], test)
    if by_class:
        evaluation |= macro(*evaluation.counts_K)
    return evaluation


def _figures(logits_NK: dict[str, Tensor], labels_N: Tensor) -> dict[str, float]:
    """The loss, and accuracies by name."""
    loss = functional.cross_entropy(logits_NK["accuracy"].double(), labels_N).item()
    hits = {name: (logits.argmax(1) == labels_N).sum().item() for name, logits in logits_NK.items()}
    return {"loss": loss} | {name: number / len(labels_N) for name, number in hits.items()}


def _spans(start: int, stop: int, total: int, world: int, batch_size: int) -> list[tuple[int, int]]:
    """The slice start .. stop - 1 in batches; as many on every rank: an empty or shorter slice runs an image more, for
    the shape."""
    longest = -(-total // world)
    firsts = (min(first, total - 1) for first in range(start, start + max(1, longest), batch_size))
    return [(first, max(min(first + batch_size, stop), first + 1)) for first in firsts]
