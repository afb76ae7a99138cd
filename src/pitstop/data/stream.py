"""The stream: which samples a step reads, as a function of the step alone (DESIGN 5)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pitstop.data.images import ImageSet
from pitstop.errors import UserError
from pitstop.randomness import permutation

Augment = Callable[[Tensor, Tensor], Tensor]


def cut(length: int, parts: int) -> list[int]:
    """The `parts + 1` borders that cut `length` samples evenly, each piece beginning at an even offset.

    Even, so that the neighbours p and p xor 1 stay together; and no piece has one sample, on which batch
    normalisation has no statistics: `parts` must be at most `length // 2`.
    """
    return [2 * (length // 2 * part // parts) for part in range(parts)] + [length]


@dataclass(frozen=True)
class Batch:
    """The slice of one step that this rank computes."""

    seed: int
    step: int
    positions_N: Tensor  # int64: place in the endless stream of epochs
    indices_N: Tensor  # int64: place in the data set
    global_size: int  # images of all ranks together
    micro_batches: list[tuple[Tensor, Tensor]]  # normalised images_BCHW float32, labels_B int64


class Batches:
    """Steps over a resident data set: step s reads the positions s*B .. (s+1)*B - 1, whoever computes them.

    Position p is sample `permutation(seed, p // N)[p % N]`. Batches run across epoch borders: no short batch, no
    dropped sample. Rank r of W takes its slice of each batch, in micro-batches of about equal size.

    Args:
        dataset: resident on the device.
        batch_size: B, of all ranks together.
        augment: (uint8 images_BCHW, positions_B) -> float32 images_BCHW, normalised.
        micro_batch: most images at once (one more where the slice is odd); 0: the whole slice.

    Raises:
        UserError: fewer than two images for each rank.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        *,
        seed: int,
        augment: Augment,
        rank: int = 0,
        world: int = 1,
        micro_batch: int = 0,
    ) -> None:
        if batch_size < 2 * world:
            raise UserError(
                f"--batch_size {batch_size} is too small for {world} processes: at least {2 * world} was expected, "
                "two images for each (batch normalisation has no statistics over one)."
            )
        self.dataset, self.batch_size, self.seed, self.augment = dataset, batch_size, seed, augment
        borders = cut(batch_size, world)
        self.start, self.stop = borders[rank], borders[rank + 1]
        length = self.stop - self.start
        pairs = length // 2
        self.borders = cut(length, math.ceil(pairs / max(1, micro_batch // 2)) if micro_batch else 1)
        self._orders: dict[int, Tensor] = {}

    @property
    def steps_per_epoch(self) -> float:
        return self.epoch_length / self.batch_size

    @property
    def largest_micro_batch(self) -> int:
        return max(b - a for a, b in zip(self.borders, self.borders[1:], strict=False))

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self.dataset)

    def total_steps(self, epochs: float) -> int:
        return max(1, math.ceil(Fraction(str(epochs)) * len(self.dataset) / self.batch_size))

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            order = permutation(self.seed, epoch, len(self.dataset))
            self._orders[epoch] = order.to(self.dataset.images_NCHW.device)
        return self._orders[epoch]

    def _indices(self, start: int, stop: int) -> Tensor:
        """int64 indices into the data set of the positions start .. stop - 1."""
        pieces, length = [], len(self.dataset)
        while start < stop:
            epoch, offset = divmod(start, length)
            end = min(length, offset + stop - start)
            pieces.append(self._order(epoch)[offset:end])
            start += end - offset
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def at(self, step: int) -> Batch:
        """This rank's slice of one step."""
        start, stop = step * self.batch_size + self.start, step * self.batch_size + self.stop
        images_NCHW, labels_N = self.dataset.images_NCHW, self.dataset.labels_N
        indices_N = self._indices(start, stop)
        positions_N = torch.arange(start, stop, device=indices_N.device)
        images_BCHW, labels_B = self.augment(images_NCHW[indices_N], positions_N), labels_N[indices_N]
        micro_batches = [
            (images_BCHW[a:b], labels_B[a:b]) for a, b in zip(self.borders, self.borders[1:], strict=False)
        ]
        return Batch(self.seed, step, positions_N, indices_N, self.batch_size, micro_batches)

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps start .. stop - 1."""
        return map(self.at, range(start, stop))
