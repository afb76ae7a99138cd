"""A set of small images, whole in memory: what a resident recipe trains on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels.

    `images_NCHW` is uint8, 0..255; `labels_N` int64, an index into `classes`. `fingerprint` is what identifies the
    data: classes, names and sizes, but not the path. On the `meta` device the shapes are known and the images absent.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    classes: tuple[str, ...]
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        return self.images_NCHW.shape[0]

    @property
    def channels(self) -> int:
        return self.images_NCHW.shape[1]

    @property
    def size(self) -> int:
        return self.images_NCHW.shape[3]

    @property
    def resident_bytes(self) -> int:
        """What the images take on the device."""
        return self.images_NCHW.nbytes

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """uint8 images_BCHW of each span (first, end), in order, on the device."""
        return (self.images_NCHW[first:end] for first, end in spans)

    def to(self, device: torch.device) -> "ImageSet":
        """The same set, resident on `device`; absent images (dry run) stay absent."""
        if self.images_NCHW.is_meta:
            return self
        return replace(self, images_NCHW=self.images_NCHW.to(device), labels_N=self.labels_N.to(device))


def mean_and_std(images_NCHW: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of pixel values scaled to 0..1. Sums of integers: the same bits on every machine."""
    if images_NCHW.is_meta:
        return (0.5,) * images_NCHW.shape[1], (0.25,) * images_NCHW.shape[1]
    counts_C256 = torch.stack(
        [torch.bincount(images_NCHW[:, c].flatten(), minlength=256) for c in range(images_NCHW.shape[1])]
    ).tolist()
    means, stds = [], []
    for counts in counts_C256:
        number = sum(counts)
        mean = sum(value * count for value, count in enumerate(counts)) / number
        variance = sum(value * value * count for value, count in enumerate(counts)) / number - mean * mean
        means.append(mean / 255)
        stds.append(max(variance, 1.0) ** 0.5 / 255)
    return tuple(means), tuple(stds)
