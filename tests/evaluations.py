"""Results of evaluations that no model has made."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitstop.evaluate import Evaluation


class Images(NamedTuple):
    images_NCHW: Tensor
    labels_N: Tensor
    names: list[str] | None = None

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        return (self.images_NCHW[first:end] for first, end in spans)


def evaluated(count: int, classes: int, channels: int = 3) -> Evaluation:
    """Noise, 4x4 pixels, more often right than wrong."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, channels, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 2 * torch.eye(classes)[labels]
    return Evaluation({"accuracy": 0.5}, logits, Images(pixels, labels, [f"\u732b {n}.png" for n in range(count)]))
