"""Decoded photos in a mapped file: bound to the content, killed and gone on with, a disk that is short."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mounted import tmpfs
from photo_files import Said, all_pixels, digest, load, picture, some_files, tar_of, tree_of
from torch import Tensor

from pitstop.data import photos as photos_module
from pitstop.data import pixels as module
from pitstop.data import places
from pitstop.data import workers as workers_module

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))
    return tree_of(some_files(12), tmp_path / "tree")


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept" / "cache").glob("photos-*.images"))


def test_built_once_and_found_again(tree: Path, tmp_path: Path) -> None:
    said = Said()
    first = load(tree, said, cache=True)
    assert sum("Decoding 36 images once" in line for line in said) == 1
    (file,) = caches(tmp_path)
    assert file.stat().st_size == sum(
        3 * h * w for h, w in np.fromfile(file.with_suffix(".sizes"), np.int32).reshape(-1, 2)
    )
    changed, again = file.stat().st_mtime_ns, Said()
    second = load(tree, again, cache=True, seed=99)  # another split of the same files
    assert not any("Decoding" in line for line in again)
    assert caches(tmp_path)[0].stat().st_mtime_ns == changed
    assert digest(all_pixels(load(tree, cache=True).train)) == digest(all_pixels(first.train))
    assert set(second.train.names) != set(first.train.names)
    assert digest(all_pixels(second.train)) == digest(all_pixels(load(tree, seed=99).train))


def test_it_is_read_and_the_files_are_not(tree: Path) -> None:
    photos = load(tree, cache=True)
    expected = digest(all_pixels(photos.train))
    shutil.rmtree(tree)
    assert digest(all_pixels(photos.train)) == expected


def test_a_changed_file_is_another_cache(tree: Path, tmp_path: Path) -> None:
    load(tree, cache=True)
    name = tree / "train" / "z" / "001.jpg"
    mine, length = picture(4711), name.stat().st_size
    name.write_bytes(mine + b"\0" * max(0, length - len(mine)))
    changed = load(tree, cache=True)
    assert len(caches(tmp_path)) == 2
    assert digest(all_pixels(changed.train)) == digest(all_pixels(load(tree).train))
    load(tree, cache=True, image_size=56)
    assert len(caches(tmp_path)) == 3


def test_what_cannot_be_decoded_has_no_pixels(tree: Path) -> None:
    """Where nobody has checked: its substitute is the one that it has without a cache."""
    (tree / "train" / "z" / "004.jpg").write_bytes(b"\xff\xd8 no image \xff\xd9")
    plain, said = load(tree, check=False), Said()
    cached = load(tree, said, check=False, cache=True)
    assert "z/004.jpg" in list(cached.train.names) + list(cached.val.names)
    for one, other in ((plain.train, cached.train), (plain.val, cached.val)):
        assert digest(all_pixels(one)) == digest(all_pixels(other))
    assert "train/z/004.jpg: it could not be decoded when the cache was built. Another image" in said[-1]


def _build_slowly(path: Path, workers: int) -> None:
    module.FLUSH_BYTES, workers_module.PIECE_IMAGES = 1, 2
    real = photos_module.decode_photo

    def slow(content: bytes, size: int) -> Tensor | str:
        time.sleep(0.01)
        return real(content, size)

    photos_module.decode_photo = slow
    load(path, cache=True, check=False, workers=workers)


def _killed_when(holds: Callable[[], bool], function: Callable[..., None], *arguments: object) -> None:
    """Runs `function` in a process of its own, which is killed when `holds` does."""
    process = FORK.Process(target=function, args=arguments)
    process.start()
    _until(holds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_it_goes_on(workers: int, tree: Path, tmp_path: Path) -> None:
    """Three times; and once what the kill left is torn, as a power cut may leave it."""
    known = 0
    for attempt in range(3):
        _killed_when(lambda before=known: _known(tmp_path) > before + 3, _build_slowly, tree, workers)
        known = _known(tmp_path)
        (file,) = caches(tmp_path)
        if attempt == 0:
            with open(file, "ab") as pixels, open(file.with_suffix(".sizes"), "ab") as sizes:
                pixels.write(b"half an image")
                sizes.write(b"\0" * 21)
    assert 9 < known < 36
    said = Said()
    cached = load(tree, said, cache=True, check=False)
    assert any(f"Decoding {36 - known} images once" in line and "from where it ended" in line for line in said)
    for one, other in ((cached.train, load(tree).train), (cached.val, load(tree).val)):
        assert digest(all_pixels(one)) == digest(all_pixels(other))


def _known(tmp_path: Path) -> int:
    """Images whose sizes are written."""
    files = list((tmp_path / "kept" / "cache").glob("photos-*.sizes"))
    return int((np.fromfile(files[0], np.int32, count=files[0].stat().st_size // 8 * 2)[::2] > 0).sum()) if files else 0


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_disk_that_is_too_small_is_left_alone(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = module.RESERVE_BYTES + 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 0, free))
    said = Said()
    photos = load(tree, said, cache=True)
    (line,) = [line for line in said if "are not kept" in line]
    assert f"{free / 1e6:,.0f} MB free" in line
    assert "training goes on without --cache" in line
    assert photos.train.pictures.pixels is None
    assert not caches(tmp_path)
    assert digest(all_pixels(photos.train)) == digest(all_pixels(load(tree).train))


def test_a_disk_that_fills_on_the_way_gets_its_room_back(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_BYTES", 1)
    monkeypatch.setattr(workers_module, "PIECE_IMAGES", 4)
    left = iter([10**10])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 0, next(left, 10**6)))
    said = Said()
    assert load(tree, said, cache=True).train.pictures.pixels is None
    assert sum("are not kept" in line for line in said) == 1
    assert not list((tmp_path / "kept" / "cache").glob("photos-*.[is]*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    with tmpfs(tmp_path / "disk", "100k") as path:
        yield path


def test_a_real_disk_without_a_free_byte(tree: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knew before: the estimate was wrong, or someone else filled it."""
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(small_disk))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10**10))
    said = Said()
    photos = load(tree, said, cache=True)
    assert any("are not kept (No space left on device)" in line for line in said), said
    assert not list(small_disk.rglob("photos-*.images"))
    assert digest(all_pixels(photos.train)) == digest(all_pixels(load(tree).train))
    monkeypatch.setattr(shutil, "disk_usage", real)
    with pytest.raises(ValueError, match=r"MB free, but unpacking packed\.tar\.gz needs"):
        load(tar_of(some_files(12), tree.parent / "packed.tar.gz"))


def _unpack_slowly(path: Path) -> None:
    real = Path.write_bytes

    def slow(self: Path, content: bytes) -> int:
        time.sleep(0.01)
        return real(self, content)

    Path.write_bytes = slow  # type: ignore[method-assign,assignment]
    load(path)


def test_killed_while_it_unpacks(tree: Path, tmp_path: Path) -> None:
    path = tar_of(some_files(12), tmp_path / "packed.tar.gz")
    unpacked = tmp_path / "kept" / "unpacked"
    _killed_when(lambda: len(list(unpacked.rglob("*.jpg"))) > 5, _unpack_slowly, path)
    assert all(child.name.startswith(".tmp-") or child.suffix == ".lock" for child in unpacked.iterdir())
    photos = load(path)
    assert digest(all_pixels(photos.train)) == digest(all_pixels(load(tree).train))
    assert len([child for child in unpacked.iterdir() if child.is_dir()]) == 1


def test_two_unpack_it_once(tree: Path, tmp_path: Path) -> None:
    path, said = tar_of(some_files(12), tmp_path / "packed.tgz"), Said()
    places.unpacked(path, tmp_path / "kept" / "unpacked", may_write=True, say=said)
    load(path, said)
    assert sum("unpacking" in line for line in said) == 1
    os.utime(path, ns=(1, 1))  # another archive, for all that is known
    load(path, said)
    assert sum("unpacking" in line for line in said) == 2


def test_a_damaged_member_is_no_half_folder(tree: Path, tmp_path: Path) -> None:
    path = tar_of(some_files(12), tmp_path / "packed.tar.gz")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"packed.tar.gz"):
        load(path)
    assert not [child for child in (tmp_path / "kept" / "unpacked").iterdir() if child.is_dir()]
