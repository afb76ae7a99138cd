"""MNIST, Fashion-MNIST, and whatever else lies in IDX files: from torchvision's mirrors, or on disk already."""

import gzip
import re
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pitstop.data.images import ImageSet
from pitstop.download import KNOWN, Arrival, Checksum, bring
from pitstop.errors import UserError
from pitstop.files import sha256

MnistName = Literal["mnist", "fashion_mnist"]
DIGITS = tuple("0123456789")
CLASSES: dict[MnistName, tuple[str, ...]] = {
    "mnist": DIGITS,
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
# Of the unpacked labels to learn from: Debian packs the files anew, so that their checksums are others.
FASHION_LABELS_SHA256 = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
NUM_TRAIN, NUM_TEST, SIZE = 60_000, 10_000, 28
FILE_NAME = re.compile(r"(train|t10k)-(images|labels)[.-]idx[13]-ubyte(\.gz)?")
PARTS = [(split, kind) for split in ("train", "t10k") for kind in ("images", "labels")]


def load_mnist(
    name: MnistName, data_dir: Path, *, may_write: bool, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """Train and test set, 60,000 and 10,000 images of 1x28x28.

    Taken from `data_dir`, where torchvision too keeps the files, else (`may_write`) from the network, or from the
    mirror named in `MNIST_URL` / `FASHION_MNIST_URL`. Else the sets are on the `meta` device.

    Raises:
        UserError: a wrong file, no network, no space; it says how to go on.
    """
    paths = KNOWN[name].paths(data_dir)
    if all(path.exists() for path in paths):
        for path, file in paths.items():
            Checksum("md5", file.md5).require(path)
    elif may_write:
        bring(name, data_dir, Arrival(say, advice=f"If that is too slow: {KNOWN[name].advice}."))
    else:
        return _absent(name)
    found = dict(zip(PARTS, paths, strict=True))
    train, test = (_image_set(_pair(found, split), CLASSES[name], _fingerprint(name)) for split in ("train", "t10k"))
    return train, test


def idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(split, kind) -> the file of it in `folder`, packed or not; empty if there are no IDX files."""
    found: dict[tuple[str, str], Path] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir(), reverse=True):  # of a packed and an unpacked file the unpacked one
            if match := FILE_NAME.fullmatch(path.name):
                found[match[1], match[2]] = path
    return found


def load_idx(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test set from the four files train|t10k-images|labels-idx3|1-ubyte[.gz] in `folder`, one channel.

    Raises:
        UserError: one is missing, damaged, or does not fit the others.
    """
    found = idx_files(folder)
    if missing := [f"{split}-{kind}" for split, kind in PARTS if (split, kind) not in found]:
        raise UserError(
            f"{folder} has IDX files, but none for {', '.join(missing)}. Expected: train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each with or without .gz."
        )
    train, test = _pair(found, "train"), _pair(found, "t10k")
    sizes = [list(images_NHW.shape[1:]) for images_NHW, _ in (train, test)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{folder}: the images to learn from have {sizes[0]} pixels, those to test on {sizes[1]}.")
    hashes = {name: [sha256(part.tobytes()) for part in pair] for name, pair in (("train", train), ("test", test))}
    number = 1 + max(int(labels_N.max()) for _, labels_N in (train, test))
    known = hashes["train"][1] == FASHION_LABELS_SHA256
    classes = CLASSES["fashion_mnist"] if known else tuple(map(str, range(number)))
    about = {"source": "idx", "size": sizes[0], **hashes}
    return _image_set(train, classes, about), _image_set(test, classes, about)


def _pair(found: dict[tuple[str, str], Path], split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """images_NHW and labels_N of a split."""
    images_path, labels_path = found[split, "images"], found[split, "labels"]
    images_NHW, labels_N = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images_NHW) != len(labels_N) or not len(labels_N):
        raise UserError(
            f"{images_path} has {len(images_NHW)} images, {labels_path.name} {len(labels_N)} labels: "
            "as many were expected, and at least one."
        )
    return images_NHW, labels_N


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file, packed by gzip or not.

    The format: two bytes of zero, 8 for unsigned bytes, the number of dimensions, each size as a big-endian uint32.

    Raises:
        UserError: it is another file, cut off, or has something behind its end.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}): bring it anew.") from error
    header_bytes = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if data[:4] != magic or len(data) < header_bytes:
        raise UserError(
            f"{path} is no IDX file of {dimensions} dimensions: it begins with {data[:4]!r}, not {magic!r}."
        )
    shape = [int(size) for size in np.frombuffer(data[4:header_bytes], dtype=">u4")]
    if len(data) - header_bytes != prod(shape):
        raise UserError(f"{path} is damaged: {shape} were announced, {len(data) - header_bytes:,} bytes follow.")
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


def _image_set(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], classes: tuple[str, ...], fingerprint: dict[str, Any]
) -> ImageSet:
    images_NHW, labels_N = pair
    if int(labels_N.max()) >= len(classes):
        raise UserError(f"There is a label {labels_N.max()}, but there are {len(classes)} classes.")
    images_NCHW = torch.from_numpy(images_NHW[:, None].copy())
    return ImageSet(images_NCHW, torch.from_numpy(labels_N.astype(np.int64)), classes, fingerprint)


def _absent(name: MnistName) -> tuple[ImageSet, ImageSet]:
    train, test = (
        ImageSet(
            torch.empty((number, 1, SIZE, SIZE), dtype=torch.uint8, device="meta"),
            torch.empty((number,), dtype=torch.int64, device="meta"),
            CLASSES[name],
            _fingerprint(name),
        )
        for number in (NUM_TRAIN, NUM_TEST)
    )
    return train, test


def _fingerprint(name: MnistName) -> dict[str, Any]:
    """The checksums that the files have been verified against: known, and the same, also before a download."""
    return {"source": name, "md5": [file.md5 for file in KNOWN[name].files]}
