"""What --data may name."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pitstop.data import load
from pitstop.errors import UserError


def images(path: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
            archive.writestr(name, buffer.getvalue())
    return path


def sizes(spec: str, *, image_size: int = 32, may_write: bool = True) -> tuple[int, int]:
    train, test = load(spec, image_size=image_size, may_write=may_write, say=lambda line: None)
    return len(train), len(test)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_names() -> None:
    assert sizes("cifar10", may_write=False) == (50000, 10000)
    assert sizes("cifar100", may_write=False) == (50000, 10000)
    assert sizes("mnist", image_size=28, may_write=False) == (60000, 10000)
    assert sizes("fashion_mnist", image_size=28, may_write=False) == (60000, 10000)
    with pytest.raises(UserError, match="images of 28x28, but 32x32"):
        sizes("mnist")
    with pytest.raises(UserError, match="--data takes cifar10, cifar100, mnist, fashion_mnist, or"):
        sizes("")
    with pytest.raises(UserError, match="images of 32x32, but 64x64"):
        sizes("cifar10", image_size=64)


def test_archive_is_cached_below_the_data_dir(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "mine.zip")
    assert sizes("mine.zip", image_size=16) == (2, 1)
    assert len(list((data_dir / "cache").glob("*.safetensors"))) == 1
    monkeypatch.delenv("PITSTOP_DATA_DIR")
    assert sizes("mine.zip", image_size=16) == (2, 1)
    assert len(list((tmp_path / "data" / "cache").glob("*.safetensors"))) == 1


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    images(tmp_path / "mine.zip")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "cifar-10-python.tar.gz").write_bytes(b"not even looked at")
    before = sorted(tmp_path.rglob("*"))
    assert sizes("mine.zip", image_size=16, may_write=False) == (2, 1)
    assert sizes("cifar10", may_write=False) == (50000, 10000)
    assert sizes("kept", may_write=False) == (50000, 10000)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("spec", ["downloads", "downloads/cifar-10-python.tar.gz"])
def test_cifars_own_archive_is_known(tmp_path: Path, spec: str) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="d41d8cd98f00b204e9800998ecf8427e"):  # it was taken for CIFAR, and verified
        sizes(spec)


def test_cifars_own_folder_is_known(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    for spec in ("cifar-100-python", "."):
        with pytest.raises(UserError, match="cifar-100-python is incomplete"):
            sizes(spec)


@pytest.mark.parametrize(("spec", "near"), [("CIFAR-10", "'cifar10'"), ("mnie.zip", "'mine.zip'")])
def test_unknown_names_get_the_nearest(tmp_path: Path, spec: str, near: str) -> None:
    images(tmp_path / "mine.zip")
    with pytest.raises(UserError) as caught:
        sizes(spec)
    assert f"did you mean {near}" in str(caught.value)
    assert "cifar100" in str(caught.value)
    assert "train/<class>/*" in str(caught.value)
