"""MNIST from small IDX files of the same make. Oracle: the arrays that were written, and torchvision's lists."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from file_server import send, serving, without_proxies
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from pitstop.data import load
from pitstop.data.mnist import CLASSES, DIGITS, read_idx
from pitstop.download import KNOWN, KnownFile
from pitstop.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = {
    split: RANDOM.integers(0, 256, (number, 28, 28), dtype=np.uint8) for split, number in (("train", 7), ("t10k", 3))
}
LABELS = {"train": np.array([0, 9, 3, 3, 2, 1, 5], np.uint8), "t10k": np.array([9, 0, 4], np.uint8)}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def packed() -> dict[str, bytes]:
    """In the order of KNOWN."""
    files = {}
    for split in ("train", "t10k"):
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(idx(IMAGES[split]), mtime=0)
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(idx(LABELS[split]), mtime=0)
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))
    for name in ("MNIST_URL", "FASHION_MNIST_URL"):
        monkeypatch.delenv(name, raising=False)
    known = tuple(KnownFile(name, hashlib.md5(data).hexdigest(), len(data)) for name, data in packed().items())
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], files=known))
    return tmp_path / "kept"


def check(spec: str, classes: tuple[str, ...] = DIGITS, *, may_write: bool = True) -> tuple[dict, list[str]]:
    said: list[str] = []
    for images, split in zip(load(spec, image_size=28, may_write=may_write, say=said.append), IMAGES, strict=True):
        assert np.array_equal(images.images_NCHW.numpy()[:, 0], IMAGES[split])
        assert images.images_NCHW.shape[1:] == (1, 28, 28)
        assert images.labels_N.tolist() == LABELS[split].tolist()
        assert images.labels_N.dtype == torch.int64
        assert images.classes == classes
    return images.fingerprint, said


def test_the_list_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, dataset in (("mnist", MNIST), ("fashion_mnist", FashionMNIST)):
        assert set(KNOWN[name].mirrors) == set(dataset.mirrors)  # older ones name the slow one first
        assert [(file.name, file.md5) for file in KNOWN[name].files] == dataset.resources
        assert KNOWN[name].subfolder == f"{dataset.__name__}/raw"
    assert CLASSES["fashion_mnist"] == tuple(FashionMNIST.classes)
    for name, dataset in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        (file,) = KNOWN[name].files
        assert (file.name, file.md5, KNOWN[name].mirrors[0] + file.name) == (
            dataset.filename,
            dataset.tgz_md5,
            dataset.url,
        )


@pytest.mark.parametrize("name", CLASSES)
def test_where_torchvision_keeps_it(data_dir: Path, name: str) -> None:
    write(data_dir / KNOWN[name].subfolder, packed())
    for may_write in (False, True):
        assert check(name, CLASSES[name], may_write=may_write)[0]["source"] == name


def test_mirror_and_what_a_killed_download_left(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = packed()
    without_proxies(monkeypatch)
    left = write(
        data_dir / "MNIST/raw", {"train-images-idx3-ubyte.gz.part": files["train-images-idx3-ubyte.gz"][:1000]}
    )
    with serving(lambda handler, start: send(handler, files[Path(handler.path).name], start)) as server:
        monkeypatch.setenv("MNIST_URL", f"{server.base}/mirror/")
        fingerprint, said = check("mnist")
        assert server.paths == [f"/mirror/{name}" for name in files]
        assert server.ranges == ["bytes=1000-", None, None, None]
        assert check("mnist") == (fingerprint, [])
        assert len(server.paths) == 4
    assert any(f"{server.base}/mirror/train-images" in line for line in said)
    assert {path.name for path in left.glob("*.gz")} == set(files)


def test_the_second_of_torchvisions_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    files = packed()
    without_proxies(monkeypatch)

    def behave(handler, start: int) -> None:
        send(handler, b"wrong", 0) if handler.path.startswith("/one/") else send(
            handler, files[handler.path[5:]], start
        )

    with serving(behave) as server:
        mirrors = (f"{server.base}/one/", f"{server.base}/two/")
        monkeypatch.setitem(KNOWN, "mnist", replace(KNOWN["mnist"], mirrors=mirrors))
        check("mnist")
        assert len(server.paths) == 8


def test_no_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    with serving(lambda handler, start: handler.send_error(404)) as server:
        monkeypatch.setenv("MNIST_URL", server.base)
        with pytest.raises(UserError) as caught:
            load("mnist", image_size=28, may_write=True, say=print)
    for part in ("404", "MNIST_URL", KNOWN["mnist"].files[3].md5, "MNIST/raw", "pitstop fetch mnist", "IDX"):
        assert part in str(caught.value)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    train, test = load("mnist", image_size=28, may_write=False, say=print)
    assert (train.images_NCHW.shape, test.labels_N.shape) == ((60000, 1, 28, 28), (10000,))
    assert train.images_NCHW.is_meta
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_known_before_the_download(data_dir: Path) -> None:
    before = load("mnist", image_size=28, may_write=False, say=print)[0].fingerprint
    write(data_dir / "MNIST/raw", packed())
    assert check("mnist")[0] == before


def test_a_damaged_file_is_named(data_dir: Path) -> None:
    write(data_dir / "MNIST/raw", packed() | {"t10k-labels-idx1-ubyte.gz": b"other"})
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is damaged or another file"):
        check("mnist")


@pytest.mark.parametrize("make", ["packed", "plain", "kaggle"])
def test_idx_files_in_any_folder(tmp_path: Path, make: str) -> None:
    files = packed()
    if make != "packed":
        files = {name.removesuffix(".gz"): gzip.decompress(data) for name, data in files.items()}
    if make == "kaggle":
        files = {name.replace("-idx", ".idx"): data for name, data in files.items()}
    write(tmp_path / make, files)
    write(tmp_path / "again", packed())
    fingerprint, _ = check(str(tmp_path / make), may_write=False)
    assert fingerprint == check(str(tmp_path / "again"))[0], "of the content, however it is packed"
    assert make not in str(fingerprint)


def test_another_pixel_is_another_fingerprint(tmp_path: Path) -> None:
    before, _ = check(str(write(tmp_path / "mine", packed())))
    changed = IMAGES["t10k"].copy()
    changed[0, 0, 0] ^= 1
    write(tmp_path / "mine", {"t10k-images-idx3-ubyte.gz": gzip.compress(idx(changed))})
    assert load("mine", image_size=28, may_write=True, say=print)[0].fingerprint != before


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("train-images-idx3-ubyte", idx(IMAGES["train"])[:-1], r"\[7, 28, 28\] were announced, 5,487 bytes follow"),
        ("train-images-idx3-ubyte", idx(IMAGES["train"]) + b"x", "5,489 bytes follow"),
        ("train-images-idx3-ubyte", idx(LABELS["train"]), "no IDX file of 3 dimensions"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03" + idx(IMAGES["train"])[4:], "no IDX file"),  # floats
        ("train-images-idx3-ubyte", b"", "no IDX file"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\xff\xff\xff\xff" * 2, "announced"),
        ("train-labels-idx1-ubyte", idx(LABELS["t10k"]), "has 7 images, .* 3 labels"),
        ("t10k-images-idx3-ubyte", idx(IMAGES["t10k"][:, :20]), r"\[28, 28\] pixels.*\[20, 28\]"),
    ],
)
def test_what_is_no_idx_file_is_refused_in_words(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    write(tmp_path / "mine", packed() | {name: data})
    with pytest.raises(UserError, match=match):
        check("mine")


def test_a_packed_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for data in (packed()["train-images-idx3-ubyte.gz"][:-20], b"no gzip at all"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.gz is damaged"):
            read_idx(path, 3)


def test_missing_files_and_other_sizes(tmp_path: Path) -> None:
    write(tmp_path / "mine", packed())
    with pytest.raises(UserError, match="images of 28x28, but 32x32"):
        load("mine", image_size=32, may_write=True, say=print)
    (tmp_path / "mine" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="none for t10k-labels"):
        check("mine")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_debians_fashion_mnist() -> None:
    train, test = load(str(DEBIAN), image_size=28, may_write=False, say=print)
    assert (len(train), len(test), train.classes) == (60000, 10000, CLASSES["fashion_mnist"])
    assert train.labels_N.bincount().tolist() == [6000] * 10
