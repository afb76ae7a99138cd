"""Where the sets live that recipes know by name: torchvision's addresses and checksums, readable without torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from pitstop.download.arrival import Arrival
from pitstop.download.checksum import Checksum
from pitstop.download.transfer import DownloadError, Remote, download
from pitstop.errors import UserError

CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
FASHION_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)


@dataclass(frozen=True)
class KnownFile:
    name: str
    md5: str
    size_bytes: int


@dataclass(frozen=True)
class KnownSet:
    """Files that make a set, and the folders that hold them, each ending in a slash.

    `variable` names the environment variable with the address of a mirror: of the file if there is one, else of the
    folder. `subfolder` is where torchvision keeps them.
    """

    mirrors: tuple[str, ...]
    variable: str
    files: tuple[KnownFile, ...]
    subfolder: str = ""

    def remote(self, file: KnownFile) -> Remote:
        """From the mirror alone if the environment names one."""
        mirror = os.environ.get(self.variable)
        if mirror and len(self.files) > 1:
            mirror = f"{mirror.rstrip('/')}/{file.name}"
        urls = (mirror,) if mirror else tuple(base + file.name for base in self.mirrors)
        return Remote(urls, Checksum("md5", file.md5), file.size_bytes)

    def paths(self, data_dir: Path) -> dict[Path, KnownFile]:
        """Where each file belongs below `data_dir`."""
        return {data_dir / self.subfolder / file.name: file for file in self.files}

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def advice(self) -> str:
        of = self.files[0].name if len(self.files) == 1 else "the folder of its files"
        return f"set {self.variable} to the URL of a mirror of {of}"


KNOWN = {
    "cifar10": KnownSet(
        CIFAR_MIRRORS,
        "CIFAR10_URL",
        (KnownFile("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", 170_498_071),),
    ),
    "cifar100": KnownSet(
        CIFAR_MIRRORS,
        "CIFAR100_URL",
        (KnownFile("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),),
    ),
    "mnist": KnownSet(
        MNIST_MIRRORS,
        "MNIST_URL",
        (
            KnownFile("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
            KnownFile("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
            KnownFile("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
            KnownFile("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        ),
        "MNIST/raw",
    ),
    "fashion_mnist": KnownSet(
        FASHION_MIRRORS,
        "FASHION_MNIST_URL",
        (
            KnownFile("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            KnownFile("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            KnownFile("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            KnownFile("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        ),
        "FashionMNIST/raw",
    ),
}


def bring(name: str, data_dir: Path, arrival: Arrival) -> None:
    """Makes sure that all files of the set `name` are below `data_dir`, each with the right checksum.

    Raises:
        UserError: a file cannot be had, or a wrong one is there; it says how to go on.
    """
    known = KNOWN[name]
    for path, file in known.paths(data_dir).items():
        remote = known.remote(file)
        if not path.exists():
            arrival.say(f"{path} is not there: downloading {remote.urls[0]} ({file.size_bytes / 1e6:,.1f} MB).")
        try:
            download(remote, path, arrival)
        except DownloadError as error:
            listed = ", ".join(f"{each.name} (MD5 {each.md5}, {each.size_bytes / 1e6:,.1f} MB)" for each in known.files)
            raise UserError(
                f"{error}\nTo go on, do one of these:\n"
                f"  - {known.advice}\n"
                f"  - put {listed} into {path.parent.resolve()}\n"
                f"  - try later: the same command, or pitstop fetch {name}, continues where this ended\n"
                "  - use images of your own: --data FOLDER|ZIP with train/<class>/* and test/<class>/*, or IDX files\n"
                "  - run recipes/digits.py, which needs no download"
            ) from error
