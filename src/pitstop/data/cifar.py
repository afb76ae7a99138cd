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
from pitstop.data.download import DownloadError, file_md5, require_md5
from pitstop.data.download import download as download_file
from pitstop.data.images import ImageSet
from pitstop.data.locks import exclusive
from pitstop.errors import UserError

CifarName = Literal["cifar10", "cifar100"]
DATASETS: dict[CifarName, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE_BYTES = 170_500_000  # of either, rounded up
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
    dataset = DATASETS[name]
    if _batches_verified(dataset, folder):
        return _load(name, folder)
    if not extract:
        return _absent(name)
    if not download and not (folder / dataset.filename).exists():
        if (folder / dataset.base_folder).exists():
            raise UserError(
                f"{folder / dataset.base_folder} is incomplete or damaged (a file is missing or has another MD5 than "
                f"torchvision's). Delete it, and put {dataset.filename} (MD5 {dataset.tgz_md5}) beside it."
            )
        return _absent(name)
    if (folder / dataset.filename).exists() and not os.access(folder, os.W_OK):
        require_md5(folder / dataset.filename, dataset.tgz_md5)
        with tempfile.TemporaryDirectory(prefix="pitstop-") as temporary:
            say(f"{folder} is read-only: {dataset.filename} is read through {temporary}.")
            _extract(dataset, folder / dataset.filename, Path(temporary))
            return _load(name, Path(temporary))
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f"{dataset.base_folder}.lock", say=say):
        if not _batches_verified(dataset, folder):
            _get_archive(name, folder, say)
            _extract(dataset, folder / dataset.filename, folder)
    return _load(name, folder)


def _batches_verified(dataset: type[CIFAR10], folder: Path) -> bool:
    return all(
        (path := folder / dataset.base_folder / file_name).is_file() and file_md5(path) == md5
        for file_name, md5 in _batch_md5s(dataset)
    )


def _batch_md5s(dataset: type[CIFAR10]) -> list[tuple[str, str]]:
    listed = [(file_name, md5) for file_name, md5 in (*dataset.train_list, *dataset.test_list)]
    return [*listed, (dataset.meta["filename"], dataset.meta["md5"])]


def _get_archive(name: CifarName, folder: Path, say: Callable[[str], None]) -> None:
    dataset, variable = DATASETS[name], f"{name.upper()}_URL"
    archive = folder / dataset.filename
    if archive.exists():
        require_md5(archive, dataset.tgz_md5)
        return
    url = os.environ.get(variable) or dataset.url
    say(f"{name} is not in {folder}: downloading {url} ({ARCHIVE_BYTES / 1e6:.0f} MB).")
    try:
        download_file(url, archive, md5=dataset.tgz_md5, size_hint_bytes=ARCHIVE_BYTES, say=say)
    except DownloadError as error:
        raise UserError(
            f"{error}\nTo go on, do one of these:\n"
            f"  - set {variable} to the URL of a mirror of {dataset.filename}\n"
            f"  - put {dataset.filename} (MD5 {dataset.tgz_md5}, 170 MB) into {folder.resolve()}\n"
            "  - use images of your own: --data FOLDER|ZIP with train/<class>/* and test/<class>/*\n"
            "  - run recipes/digits.py, which needs no download"
        ) from error


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
