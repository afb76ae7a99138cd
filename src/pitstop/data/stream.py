"""The stream: which samples a step reads, as a function of the step alone (DESIGN 5)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from pitstop.data.images import ImageSet
from pitstop.errors import UserError
from pitstop.randomness import RESAMPLE, draws, key, permutation

Augment = Callable[[Tensor, Tensor], Tensor]  # uint8 images_BCHW, positions_B -> float32 images_BCHW, normalised
# (images_BCHW, labels_B, step) of a slice, whose first image is at an even place of the batch -> images_BCHW, targets
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def cut(length: int, parts: int) -> list[int]:
    """The `parts + 1` borders that cut `length` samples evenly, each piece beginning at an even offset.

    Even, so that the neighbours p and p xor 1 stay together; and no piece has one sample, on which batch
    normalisation has no statistics: `parts` must be at most `length // 2`.
    """
    return [2 * (length // 2 * part // parts) for part in range(parts)] + [length]


def micro_borders(length: int, micro_batch: int) -> list[int]:
    """Where `length` images are cut into pieces of at most `micro_batch` (one more if that is odd); 0: one piece."""
    return cut(length, math.ceil((length // 2) / max(1, micro_batch // 2)) if micro_batch else 1)


@dataclass(frozen=True)
class Batch:
    """The slice of one step that this rank computes."""

    seed: int
    step: int
    positions_N: Tensor  # int64: place in the endless stream of epochs
    indices_N: Tensor  # int64: place in the data set
    global_size: int  # images of all ranks together
    images_NCHW: Tensor  # float32, normalised, on the device
    targets_N: Tensor  # int64 labels, or float32 [N, K] shares of the classes
    micro_batch: int  # most images at once; 0: all

    @property
    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """images_BCHW and their targets, in pieces of about equal size."""
        borders = micro_borders(len(self.targets_N), self.micro_batch)
        return [(self.images_NCHW[a:b], self.targets_N[a:b]) for a, b in pairwise(borders)]


class Stream:
    """Step s reads the positions s*B .. (s+1)*B - 1, whoever computes them.

    Position p is sample `permutation(seed, p // N)[p % N]`; with weights it is drawn by them, for each position anew.
    Batches run across epoch borders: no short batch, no dropped sample. Rank r of W takes its slice of each batch, in
    micro-batches of about equal size.

    Args:
        length: N, samples in an epoch.
        batch_size: B, of all ranks together.
        micro_batch: most images at once (one more where the slice is odd); 0: the whole slice.
        device: where positions and indices are wanted.
        weights_N: how often each sample is drawn, relative to the others; None: once an epoch.

    Raises:
        UserError: fewer than two images for each rank.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
        device: torch.device | str = "cpu",
        weights_N: Tensor | None = None,
    ) -> None:
        if batch_size < 2 * world:
            raise UserError(
                f"--batch_size {batch_size} is too small for {world} processes: at least {2 * world} was expected, "
                "two images for each (batch normalisation has no statistics over one)."
            )
        self.epoch_length, self.batch_size, self.seed = length, batch_size, seed
        self.micro_batch, self._device = micro_batch, device
        borders = cut(batch_size, world)
        self.start, self.stop = borders[rank], borders[rank + 1]
        self._orders: dict[int, Tensor] = {}
        # On the CPU and in sequence, whatever the device: the sums are the same bits everywhere.
        self._sums_N = None if weights_N is None else weights_N.double().cpu().cumsum(0)

    @property
    def steps_per_epoch(self) -> float:
        return self.epoch_length / self.batch_size

    @property
    def largest_micro_batch(self) -> int:
        borders = micro_borders(self.stop - self.start, self.micro_batch)
        return max(b - a for a, b in pairwise(borders))

    def total_steps(self, epochs: float) -> int:
        return max(1, math.ceil(Fraction(str(epochs)) * self.epoch_length / self.batch_size))

    def positions(self, step: int) -> tuple[Tensor, Tensor]:
        """int64 positions_N of this rank's slice of a step, and the indices_N of their samples."""
        start, stop = step * self.batch_size + self.start, step * self.batch_size + self.stop
        positions_N = torch.arange(start, stop, device=self._device)
        return positions_N, self._indices(start, stop) if self._sums_N is None else self._drawn(positions_N)

    def _drawn(self, positions_N: Tensor) -> Tensor:
        """int64 indices, each drawn by the weights: the inverse of their distribution at a number of 48 random bits."""
        assert self._sums_N is not None
        high_N, low_N = draws(key(RESAMPLE, self.seed), positions_N.cpu(), 2).double().unbind(1)
        drawn_N = torch.searchsorted(self._sums_N, (high_N + low_N * 2.0**-24) * self._sums_N[-1], right=True)
        return drawn_N.to(self._device)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = permutation(self.seed, epoch, self.epoch_length).to(self._device)
        return self._orders[epoch]

    def _indices(self, start: int, stop: int) -> Tensor:
        """int64 indices into the data set of the positions start .. stop - 1."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.epoch_length)
            end = min(self.epoch_length, offset + stop - start)
            pieces.append(self._order(epoch)[offset:end])
            start += end - offset
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class Batches(Stream):
    """Steps over a resident data set.

    Args:
        dataset: resident on the device.
        augment: see `Augment`.
        mix: what is done to the slice as a whole after that (mixup, say); see `Mix`.
        others: see `Stream`.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        *,
        seed: int,
        augment: Augment,
        mix: Mix | None = None,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
    ) -> None:
        device = dataset.images_NCHW.device
        super().__init__(
            len(dataset), batch_size, seed=seed, rank=rank, world=world, micro_batch=micro_batch, device=device
        )
        self.dataset, self.augment, self.mix = dataset, augment, mix

    def at(self, step: int) -> Batch:
        """This rank's slice of one step."""
        positions_N, indices_N = self.positions(step)
        images_NCHW = self.augment(self.dataset.images_NCHW[indices_N], positions_N)
        targets_N = self.dataset.labels_N[indices_N]
        if self.mix:
            images_NCHW, targets_N = self.mix(images_NCHW, targets_N, step)
        return Batch(self.seed, step, positions_N, indices_N, self.batch_size, images_NCHW, targets_N, self.micro_batch)

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps start .. stop - 1."""
        return map(self.at, range(start, stop))
