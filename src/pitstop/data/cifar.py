"""CIFAR-10 and CIFAR-100 as torchvision knows them: the archive on disk, from its home, or from a mirror."""

import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from pitstop import files
from pitstop.data.images import ImageSet
from pitstop.download import KNOWN, Arrival, Checksum, bring
from pitstop.errors import UserError
from pitstop.locks import exclusive

CifarName = Literal["cifar10", "cifar100"]
DATASETS: dict[CifarName, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EXTRACTED_BYTES = 187_000_000
NUM_TRAIN, NUM_TEST, SIZE = 50_000, 10_000, 32


def load_cifar(
    name: CifarName,
    folder: Path,
    *,
    download: bool,
    extract: bool = True,
    say: Callable[[str], None],
) -> tuple[ImageSet, ImageSet]:
    """Train and test set, 50,000 and 10,000 images of 3x32x32.

    Taken from `folder`: the extracted batches, else (`extract`) the archive, else (`download`) the archive from the
    network, or from the mirror named in `CIFAR10_URL` / `CIFAR100_URL`. Where that finds nothing the sets are on the
    `meta` device. No batch is unpickled whose checksum was not verified.

    Raises:
        UserError: a wrong archive or damaged batches, no network, no space; it says how to go on.
    """
    dataset, known = DATASETS[name], KNOWN[name].files[0]
    archive = folder / known.name
    if _batches_verified(dataset, folder):
        return _load(name, folder)
    if not extract:
        return _absent(name)
    if not download and not archive.exists():
        if (folder / dataset.base_folder).exists():
            raise UserError(
                f"{folder / dataset.base_folder} is incomplete or damaged (a file is missing or has another MD5 than "
                f"torchvision's). Delete it, and put {known.name} (MD5 {known.md5}) beside it."
            )
        return _absent(name)
    if archive.exists() and not os.access(folder, os.W_OK):
        Checksum("md5", known.md5).require(archive)
        with tempfile.TemporaryDirectory(prefix="pitstop-") as temporary:
            say(f"{folder} is read-only: {known.name} is read through {temporary}.")
            _extract(dataset, archive, Path(temporary))
            return _load(name, Path(temporary))
    bring(name, folder, Arrival(say, advice=f"If that is too slow: {KNOWN[name].advice}."))
    with exclusive(folder / f"{dataset.base_folder}.lock", say=say):
        if not _batches_verified(dataset, folder):
            _extract(dataset, archive, folder)
    return _load(name, folder)


def _batches_verified(dataset: type[CIFAR10], folder: Path) -> bool:
    return all(
        (path := folder / dataset.base_folder / file_name).is_file() and Checksum("md5", md5).matches(path)
        for file_name, md5 in _batch_md5s(dataset)
    )


def _batch_md5s(dataset: type[CIFAR10]) -> list[tuple[str, str]]:
    listed = [(file_name, md5) for file_name, md5 in (*dataset.train_list, *dataset.test_list)]
    return [*listed, (dataset.meta["filename"], dataset.meta["md5"])]


def _extract(dataset: type[CIFAR10], archive: Path, folder: Path) -> None:
    """The batches out of the verified `archive`, into `folder / base_folder`: all or none, also when killed.

    Only the files that torchvision lists are taken, by their names, so that no member can land elsewhere.
    """
    files.require_space(folder, EXTRACTED_BYTES, f"extracting {archive.name}")
    for left_by_killed in folder.glob(f".t*-{dataset.base_folder}-*"):  # the lock is ours: nobody else is at it
        shutil.rmtree(left_by_killed, ignore_errors=True)
    with tarfile.open(archive) as tar, files.new_directory(folder / dataset.base_folder) as new:
        for file_name, _ in _batch_md5s(dataset):
            member = tar.extractfile(f"{dataset.base_folder}/{file_name}")
            assert member is not None, f"{file_name} is no file in {archive}, whose checksum is right"
            files.write_new(new / file_name, member.read())


def _load(name: CifarName, folder: Path) -> tuple[ImageSet, ImageSet]:
    with warnings.catch_warnings():
        # The batches were pickled by Python 2; NumPy 2.4 warns of their dtype(align=0).
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train = DATASETS[name](str(folder), train=True)
        test = DATASETS[name](str(folder), train=False)
    return _image_set(name, train), _image_set(name, test)


def _image_set(name: CifarName, data: Any) -> ImageSet:
    images_NCHW = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return ImageSet(images_NCHW, torch.tensor(data.targets, dtype=torch.int64), tuple(data.classes), _fingerprint(name))


def _absent(name: CifarName) -> tuple[ImageSet, ImageSet]:
    classes = CIFAR10_CLASSES if name == "cifar10" else tuple(str(i) for i in range(100))
    train, test = (
        ImageSet(
            torch.empty((number, 3, SIZE, SIZE), dtype=torch.uint8, device="meta"),
            torch.empty((number,), dtype=torch.int64, device="meta"),
            classes,
            _fingerprint(name),
        )
        for number in (NUM_TRAIN, NUM_TEST)
    )
    return train, test


def _fingerprint(name: CifarName) -> dict[str, Any]:
    """The checksums that every loaded batch has been verified against: known, and the same, also before a download."""
    dataset = DATASETS[name]
    return {
        "source": name,
        "train": [md5 for _, md5 in dataset.train_list],
        "test": [md5 for _, md5 in dataset.test_list],
    }
