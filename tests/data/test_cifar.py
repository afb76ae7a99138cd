"""CIFAR from a tiny archive of the same make, pickled as Python 2 did, with its own checksums."""

import copyreg
import hashlib
import io
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from pitstop.data.cifar import load_cifar
from pitstop.download import KNOWN, KnownFile
from pitstop.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3072), dtype=np.uint8)
LABELS = [3, 1, 0, 2, 3, 1, 0]
NAMES = ["a", "b", "c", "d"]


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def pickled(value: object) -> bytes:
    """With dtype(align=0, copy=1), the integers that NumPy 2.4 warns of."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[type(np.dtype("u1"))] = lambda dtype: (np.dtype, ("u1", 0, 1))
    pickler.dump(value)
    return buffer.getvalue()


def batches() -> dict[str, bytes]:
    return {
        "data_batch_1": pickled({"data": PIXELS[:3], "labels": LABELS[:3]}),
        "data_batch_2": pickled({"data": PIXELS[3:5], "labels": LABELS[3:5]}),
        "test_batch": pickled({"data": PIXELS[5:], "labels": LABELS[5:]}),
        "batches.meta": pickled({"label_names": NAMES}),
    }


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in {**files, "readme.html": b"..."}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def archive_file(data: bytes) -> KnownFile:
    return KnownFile("cifar-10-python.tar.gz", md5(data), len(data))


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    files = batches()
    data = archive_of(files)
    listed = [[name, md5(content)] for name, content in files.items()]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:2])
    monkeypatch.setattr(CIFAR10, "test_list", listed[2:3])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": listed[3][1]})
    monkeypatch.setitem(KNOWN, "cifar10", replace(KNOWN["cifar10"], files=(archive_file(data),)))
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    return data


def check(folder: Path, *, download: bool = False) -> list[str]:
    said: list[str] = []
    train, test = load_cifar("cifar10", folder, download=download, say=said.append)
    assert np.array_equal(train.images_NCHW.numpy(), PIXELS[:5].reshape(5, 3, 32, 32))
    assert np.array_equal(test.images_NCHW.numpy(), PIXELS[5:].reshape(2, 3, 32, 32))
    assert train.labels_N.tolist() == LABELS[:5]
    assert test.labels_N.tolist() == LABELS[5:]
    assert train.labels_N.dtype == torch.int64
    assert train.images_NCHW.is_contiguous()
    assert train.classes == test.classes == tuple(NAMES)
    assert train.fingerprint == test.fingerprint
    return said


def test_archive_in_the_folder_is_used_without_network(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    check(tmp_path, download=True)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    check(tmp_path)


def test_mirror(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror.bin").write_bytes(archive)
    monkeypatch.setenv("CIFAR10_URL", (tmp_path / "mirror.bin").as_uri())
    said = check(tmp_path / "data", download=True)
    assert any("mirror.bin" in line for line in said)
    assert md5((tmp_path / "data" / "cifar-10-python.tar.gz").read_bytes()) == md5(archive)


def test_wrong_archive_names_both_checksums(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[:-1])
    for download in (True, False):
        with pytest.raises(UserError) as caught:
            load_cifar("cifar10", tmp_path, download=download, say=print)
        assert md5(archive) in str(caught.value)
        assert md5(archive[:-1]) in str(caught.value)
    assert not (tmp_path / "cifar-10-batches-py").exists()


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_changed_batch_is_never_unpickled(archive: bytes, tmp_path: Path, name: str) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    check(tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cifar-10-python.tar.gz").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="damaged"):
        load_cifar("cifar10", tmp_path, download=False, say=print)
    (tmp_path / "kept").rename(tmp_path / "cifar-10-python.tar.gz")
    check(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_what_a_killed_extraction_left_is_done_again(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(batches()["data_batch_1"])
    (tmp_path / ".tmp-cifar-10-batches-py-999999").mkdir()
    check(tmp_path)
    assert not list(tmp_path.glob(".t*"))


def test_processes_at_once(archive: bytes, tmp_path: Path) -> None:
    """Each child patches torchvision as the fixture does; all must load the same."""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    program = (
        "import sys; from pathlib import Path; from torchvision.datasets import CIFAR10 as C; "
        f"C.train_list={CIFAR10.train_list!r}; C.test_list={CIFAR10.test_list!r}; C.meta={CIFAR10.meta!r}; "
        "from dataclasses import replace; from pitstop.download import KNOWN, KnownFile; "
        f"KNOWN['cifar10'] = replace(KNOWN['cifar10'], files=({archive_file(archive)!r},)); "
        "from pitstop.data.cifar import load_cifar; "
        f"a, b = load_cifar('cifar10', Path({str(tmp_path)!r}), download=True, say=print); assert len(a) == 5"
    )
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(100) for process in both] == [0, 0]
    assert not list(tmp_path.glob(".t*"))


def test_read_only_folder(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "read-only" in check(tmp_path)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_no_network_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/cifar"
        monkeypatch.setenv("CIFAR10_URL", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(UserError) as caught:
            load_cifar("cifar10", tmp_path, download=True, say=print)
    for part in (url, "refused", "CIFAR10_URL", "c58f30108f718f92721af3b95e74349a", "170.5 MB", "--data", "digits.py"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_dry_run_knows_the_shapes(tmp_path: Path, name: str, num_classes: int) -> None:
    train, test = load_cifar(name, tmp_path / "none", download=False, say=print)  # type: ignore[arg-type]
    assert train.images_NCHW.shape == (50000, 3, 32, 32)
    assert test.images_NCHW.shape == (10000, 3, 32, 32)
    assert train.labels_N.is_meta
    assert train.images_NCHW.is_meta
    assert len(train.classes) == num_classes
    assert not (tmp_path / "none").exists()


def test_dry_run_leaves_the_archive_and_reads_what_was_extracted(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    absent, _ = load_cifar("cifar10", tmp_path, download=False, extract=False, say=print)
    assert absent.images_NCHW.is_meta
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]
    check(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    present, _ = load_cifar("cifar10", tmp_path, download=False, extract=False, say=print)
    assert np.array_equal(present.images_NCHW.numpy(), PIXELS[:5].reshape(5, 3, 32, 32))
    assert sorted(tmp_path.rglob("*")) == before


def test_fingerprint_is_known_before_the_download(archive: bytes, tmp_path: Path) -> None:
    absent, _ = load_cifar("cifar10", tmp_path, download=False, say=print)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    present, _ = load_cifar("cifar10", tmp_path, download=False, say=print)
    assert absent.fingerprint == present.fingerprint
    assert present.fingerprint["train"] == [md5(batches()[name]) for name in ("data_batch_1", "data_batch_2")]


def test_extraction_needs_space(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="1 MB free"):
        load_cifar("cifar10", tmp_path, download=False, say=print)
