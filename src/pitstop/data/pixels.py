"""Decoded photos on disk, mapped into memory: --cache. One file of pixels, and one that says where each image lies.

    photos-<key>.images   uint8 [height, width, 3] of each image, one after the other
    photos-<key>.sizes    int32 height and width of each; -1, -1: it cannot be decoded

Both only grow, and sizes are written after their pixels are safe: a killed build goes on where the sizes end. The key
is a hash of every file's name, size and mark, and of what decodes: another content is another cache.
"""

import mmap
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pitstop.locks import exclusive

RESERVE_BYTES = 1_000_000_000  # that a build leaves free: for checkpoints
FLUSH_BYTES = 256_000_000
SAY_SECONDS = 10.0
BROKEN = -1


class Pixels:
    """The images of a finished cache, by row. The mapping is read-only and shared by all processes."""

    def __init__(self, file: Path, sizes_N2: NDArray[np.int32]) -> None:
        self._sizes_N2 = sizes_N2
        self._ends_N = np.cumsum(_lengths(sizes_N2))
        with open(file, "rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, that a tensor of it must not be written to
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._flat = torch.frombuffer(mapped, dtype=torch.uint8)

    def image(self, row: int) -> Tensor | str:
        """uint8 [3, h, w], channels last, not to be written to; or that there is none."""
        height, width = self._sizes_N2[row].tolist()
        if height == BROKEN:
            return "it could not be decoded when the cache was built"
        end = int(self._ends_N[row])
        return self._flat[end - 3 * height * width : end].view(height, width, 3).permute(2, 0, 1)


def _lengths(sizes_N2: NDArray[np.int32]) -> NDArray[np.int64]:
    height_N, width_N = np.maximum(sizes_N2, 0).astype(np.int64).T
    return np.asarray(3 * height_N * width_N)


def open_pixels(folder: Path, key: str, number: int) -> Pixels | None:
    """The cache of `number` images; None: it is not there, or not finished."""
    sizes_N2 = _known_sizes(folder, key, number)
    file = folder / f"photos-{key}.images"
    if len(sizes_N2) < number or not file.exists() or file.stat().st_size < max(1, int(_lengths(sizes_N2).sum())):
        return None
    return Pixels(file, sizes_N2)


def _known_sizes(folder: Path, key: str, number: int) -> NDArray[np.int32]:
    file = folder / f"photos-{key}.sizes"
    data = file.read_bytes() if file.exists() else b""
    sizes_N2 = np.frombuffer(data[: len(data) // 8 * 8], np.int32).reshape(-1, 2)[:number]
    empty = np.flatnonzero((sizes_N2 == 0).any(axis=1))  # what a file system shows of a write that a crash cut short
    return sizes_N2[: empty[0]] if len(empty) else sizes_N2


def build_pixels(
    folder: Path,
    key: str,
    number: int,
    decoded: Callable[[int], Iterable[tuple[NDArray[np.int32], Tensor]]],
    needed_bytes: Callable[[], int],
    say: Callable[[str], None],
) -> Pixels | None:
    """The cache below `folder`: found, or built by this process while others wait. None, said, if the disk is short.

    Args:
        decoded: for the images from this row on: the sizes of the next few, and their pixels, flat.
        needed_bytes: an estimate of the whole.
    """
    if found := open_pixels(folder, key, number):
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"photos-{key}.lock").touch()
    except OSError as error:
        say(f"Decoded images are not kept: {folder} cannot be written ({error.strerror}).")
        return None
    with exclusive(folder / f"photos-{key}.lock", say=say):
        if found := open_pixels(folder, key, number):  # by the process that was waited for
            return found
        sizes_N2 = _known_sizes(folder, key, number)
        missing_bytes = needed_bytes() - int(_lengths(sizes_N2).sum())
        free_bytes = shutil.disk_usage(folder).free
        try:
            enough = free_bytes >= missing_bytes + RESERVE_BYTES
            if enough and _build(folder / f"photos-{key}.images", sizes_N2, number, decoded, say):
                return open_pixels(folder, key, number)
            reason = ""
        except OSError as error:
            reason = f" ({error.strerror})"
        for suffix in ("sizes", "images"):
            (folder / f"photos-{key}.{suffix}").unlink(missing_ok=True)
    say(
        f"Decoded images are not kept{reason}, training goes on without --cache: {folder.resolve()} had "
        f"{free_bytes / 1e6:,.0f} MB free, but {missing_bytes / 1e6:,.0f} MB are needed, and "
        f"{RESERVE_BYTES / 1e6:,.0f} MB more for checkpoints. Free some space, or set PITSTOP_DATA_DIR to a folder on "
        "another disk."
    )
    return None


def _build(
    images: Path,
    sizes_N2: NDArray[np.int32],
    number: int,
    decoded: Callable[[int], Iterable[tuple[NDArray[np.int32], Tensor]]],
    say: Callable[[str], None],
) -> bool:
    """Appends what is missing. False: the disk fills up."""
    first = done = len(sizes_N2)
    say(f"Decoding {number - first:,} images once, into {images} (--cache){', from where it ended' if first else ''}.")
    begun = told = time.monotonic()
    with open(images, "ab") as pixels, open(images.with_suffix(".sizes"), "ab") as sizes:
        pixels.truncate(int(_lengths(sizes_N2).sum()))
        sizes.truncate(8 * first)
        pending, pending_bytes = [], 0
        for piece_N2, flat in decoded(first):
            pixels.write(flat.numpy().data)
            pending.append(piece_N2)
            pending_bytes += flat.nbytes
            done += len(piece_N2)
            if pending_bytes >= FLUSH_BYTES or done == number:
                _sync(pixels.fileno(), pixels.flush)
                sizes.write(np.concatenate(pending).astype(np.int32).tobytes())
                _sync(sizes.fileno(), sizes.flush)
                pending, pending_bytes = [], 0
                if shutil.disk_usage(images.parent).free < RESERVE_BYTES and done < number:
                    return False
            if (now := time.monotonic()) - told >= SAY_SECONDS:
                left_seconds = (now - begun) / (done - first) * (number - done)
                say(f"Decoded {done:,} of {number:,} images, {left_seconds:.0f} s left.")
                told = now
    return True


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)
