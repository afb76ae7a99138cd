"""The stream over photos: workers decode and crop, the device does the rest."""

import time
from collections.abc import Generator
from contextlib import closing

from torch import Tensor

from pitstop.data.photos import Group, PhotoSet, View
from pitstop.data.stream import Augment, Batch, Mix, Stream


class PhotoBatches(Stream):
    """Steps over photos.

    Args:
        dataset: says where images are brought, and by how many workers.
        crop: (uint8 image_CHW, position) -> uint8 [3, size, size]; in the workers, a function of its arguments alone.
        augment: see `Augment`; on the device.
        mix: what is done to the slice as a whole after that (mixup, say); see `Mix`.
        others: see `Stream`.
    """

    def __init__(
        self,
        dataset: PhotoSet,
        batch_size: int,
        *,
        seed: int,
        crop: View,
        augment: Augment,
        mix: Mix | None = None,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
        weights_N: Tensor | None = None,
    ) -> None:
        super().__init__(
            len(dataset), batch_size, seed=seed, rank=rank, world=world, micro_batch=micro_batch, weights_N=weights_N
        )
        self.dataset, self.crop, self.augment, self.mix = dataset, crop, augment, mix
        self.waited_seconds = 0.0  # for the workers

    def between(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps start .. stop - 1. To close it, or to let go of it, ends the workers.

        Raises:
            RuntimeError: see `PhotoSet.brought`.
        """
        steps = range(start, stop)
        with closing(self.dataset.brought(map(self._group, steps), self.crop)) as brought:
            for step in steps:
                begun = time.monotonic()
                images_BCHW = next(brought)
                self.waited_seconds += time.monotonic() - begun
                yield self._batch(step, images_BCHW)

    def _group(self, step: int) -> Group:
        positions_N, indices_N = self.positions(step)
        return indices_N.numpy(), positions_N.numpy()

    def _batch(self, step: int, images_NCHW: Tensor) -> Batch:
        positions_N, indices_N = (self._on_device(numbers_N) for numbers_N in self.positions(step))
        images_NCHW = self.augment(images_NCHW, positions_N)
        targets_N = self.dataset.labels_N[indices_N]
        if self.mix:
            images_NCHW, targets_N = self.mix(images_NCHW, targets_N, step)
        return Batch(self.seed, step, positions_N, indices_N, self.batch_size, images_NCHW, targets_N, self.micro_batch)

    def _on_device(self, numbers_N: Tensor) -> Tensor:
        device = self.dataset.device
        if device.type == "cuda":  # else the copy would wait for the device
            numbers_N = numbers_N.pin_memory()
        return numbers_N.to(device, non_blocking=True)
