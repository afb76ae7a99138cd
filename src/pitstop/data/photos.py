"""Sets of photos too large to be resident: read, decoded and cropped by worker processes, as they are needed."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pitstop.data.decode import MAX_FILE_BYTES, centre, decode_photo
from pitstop.data.pixels import Pixels
from pitstop.data.places import Place
from pitstop.data.texts import Texts
from pitstop.data.workers import NumWorkers, bring, number_of, piece_images

REPLACED = "Another image of its class takes its place."
COUNTED_TWICE = "Another image of its class is counted in its place: the figures are not quite right."
MAX_SUBSTITUTES = 20  # in a row: then it is not a file that is broken, but the disk
Broken = list[tuple[int, str]]  # rows that cannot be read, and why
View = Callable[[Tensor, int], Tensor]  # uint8 image_CHW, position -> uint8 [3, size, size]
Group = tuple[NDArray[np.int64], NDArray[np.int64]]  # indices_N and positions_N of one batch


def load_size(image_size: int) -> int:
    """Shorter side, in pixels, of the decoded images of which crops of `image_size` are taken: 256 for 224."""
    return math.ceil(image_size * 8 / 7)


class Pictures:
    """All files of a source, by row; decoded to one shorter side, whether they come from the cache or not."""

    def __init__(self, place: Place, names: Texts, shorter: int, say: Callable[[str], None]) -> None:
        self.place, self.names, self.shorter = place, names, shorter
        self.pixels: Pixels | None = None
        self._say = say
        self._told: set[int] = set()

    def image(self, row: int) -> Tensor | str:
        """uint8 [3, h, w], channels last in memory, not to be written to; or why there is none."""
        return self.pixels.image(row) if self.pixels else self.decode(row)

    def decode(self, row: int) -> Tensor | str:
        try:
            with self.place.open(row) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return error.strerror or str(error)
        return decode_photo(data, self.shorter) if len(data) <= MAX_FILE_BYTES else "too large a file"

    def report(self, broken: Broken, consequence: str) -> None:
        """Says, once for each file, that it cannot be read, and what follows from it."""
        for row, reason in broken:
            if row not in self._told:
                self._told.add(row)
                self._say(f"{self.names[row]}: {reason}. {consequence}")


@dataclass(frozen=True)
class PhotoSet:
    """Photos with their labels, sorted by class and name; evaluated on the middle of each.

    `labels_N` is int64, an index into `classes`; `names` are paths below the split ("cat/1.jpg"); `fingerprint` is what
    identifies the data: classes, names and sizes, but not the path. `rows_N` are their rows in `pictures`.
    """

    classes: tuple[str, ...]
    labels_N: Tensor
    names: Texts
    fingerprint: dict[str, Any]
    size: int
    pictures: Pictures
    rows_N: NDArray[np.int64]
    borders_K: NDArray[np.int64]  # where each class begins, and the end of the last
    workers: NumWorkers
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def channels(self) -> int:
        return 3

    @property
    def resident_bytes(self) -> int:
        """None of the photos stays on the device."""
        return 0

    def to(self, device: torch.device) -> "PhotoSet":
        """The same set; its labels are there, and its images will be brought there."""
        return replace(self, labels_N=self.labels_N.to(device), device=device)

    def read(self, spans: Sequence[tuple[int, int]]) -> Generator[Tensor, None, None]:
        """uint8 images_BCHW of each span (first, end), in order, on the device: the middle of each photo."""
        groups = (np.arange(first, end) for first, end in spans)
        return self.brought(((indices_B, indices_B) for indices_B in groups), self._middle, COUNTED_TWICE)

    def _middle(self, image_CHW: Tensor, _: int) -> Tensor:
        return centre(image_CHW, self.size)

    def brought(
        self, groups: Iterable[Group], view: View, consequence: str = REPLACED
    ) -> Generator[Tensor, None, None]:
        """For each group: `view` of its images, made by the workers, as uint8 images_BCHW on the device. What is
        said of a file that cannot be read ends in `consequence`.

        Raises:
            RuntimeError: a worker was killed, or one file after the other cannot be read.
        """
        workers = number_of(self.workers, self.device)
        most = piece_images(3 * self.size**2, workers)
        lengths: deque[int] = deque()  # of the groups that the workers have begun

        def pieces() -> Iterator[Group]:
            for indices_B, positions_B in groups:
                lengths.append(len(indices_B))
                for first in range(0, len(indices_B), most):
                    yield indices_B[first : first + most], positions_B[first : first + most]

        def work(piece: Group) -> tuple[Tensor, Broken]:
            return self._piece(piece, view)

        with closing(bring(work, pieces(), workers)) as results:
            for images_BCHW, broken in results:
                self.pictures.report(broken, consequence)
                gathered, missing = [images_BCHW], lengths.popleft() - len(images_BCHW)
                while missing:
                    images_BCHW, broken = next(results)
                    self.pictures.report(broken, consequence)
                    gathered.append(images_BCHW)
                    missing -= len(images_BCHW)
                yield self._on_device(gathered)

    def _on_device(self, gathered: list[Tensor]) -> Tensor:
        if self.device.type == "cpu":
            return torch.cat(gathered) if len(gathered) > 1 else gathered[0]
        pinned_BHWC = torch.empty(
            (sum(map(len, gathered)), self.size, self.size, 3), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        torch.cat([images_BCHW.permute(0, 2, 3, 1) for images_BCHW in gathered], out=pinned_BHWC)
        return pinned_BHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _piece(self, piece: Group, view: View) -> tuple[Tensor, Broken]:
        indices_B, positions_B = piece
        images_BCHW = torch.empty(len(indices_B), self.size, self.size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        broken: Broken = []
        for place, (index, position) in enumerate(zip(indices_B.tolist(), positions_B.tolist(), strict=True)):
            images_BCHW[place] = view(self.image(index, broken), position)
        return images_BCHW, broken

    def image(self, index: int, broken: Broken) -> Tensor:
        """uint8 [3, h, w] of an image, or of the next one of its class that can be read; `broken` takes the others."""
        label = int(np.searchsorted(self.borders_K, index, side="right")) - 1
        first, end = self.borders_K[label : label + 2].tolist()
        for step in range(min(end - first, MAX_SUBSTITUTES)):
            row = int(self.rows_N[first + (index - first + step) % (end - first)])
            if not isinstance(found := self.pictures.image(row), str):
                return found
            broken.append((row, found))
        named = "; ".join(f"{self.pictures.names[row]}: {reason}" for row, reason in broken[-3:])
        raise RuntimeError(f"One image after the other cannot be read ({named}). Is the disk still there?")
