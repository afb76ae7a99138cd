"""Photos in folders and archives. The oracle: what was written, Pillow called directly, hashlib, sets of names."""

import io
import json
import math
import multiprocessing
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from photo_files import (
    CLASSES,
    SIZE,
    Files,
    Said,
    all_pixels,
    digest,
    load,
    picture,
    some_files,
    tar_of,
    tree_of,
    zip_of,
)
from PIL import Image

from pitstop import data
from pitstop.data import decode, photo_sources, places, scan
from pitstop.data.places import Packed, Tree
from pitstop.data.texts import Texts
from pitstop.errors import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def files() -> Files:
    return some_files(12, "val", "test")


def names(photos: data.PhotoSet) -> list[str]:
    return list(photos.names)


def expected(content: bytes) -> np.ndarray:
    """The middle of a photo, by Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        scale = data.load_size(SIZE) / min(width, height)
        image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))  # half the size, where that suffices
        size = (round(image.width * 32 / min(image.size)), round(image.height * 32 / min(image.size)))
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = (small.width - SIZE) // 2, (small.height - SIZE) // 2
    return np.asarray(small)[top : top + SIZE, left : left + SIZE]


def test_the_middle_of_each_photo_in_the_order_of_names(files: Files, tmp_path: Path) -> None:
    photos = load(tree_of(dict(reversed(files.items())), tmp_path / "tree"))
    assert photos.train.classes == CLASSES
    assert photos.test is not None
    for split, photo_set in (("train", photos.train), ("val", photos.val), ("test", photos.test)):
        mine = {name.split("/", 1)[1]: content for name, content in files.items() if name.startswith(f"{split}/")}
        assert names(photo_set) == sorted(mine)
        assert [CLASSES[label] for label in photo_set.labels_N] == [name.split("/")[0] for name in sorted(mine)]
        pixels = all_pixels(photo_set)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (len(mine), 3, SIZE, SIZE))
        for image, name in zip(pixels, sorted(mine), strict=True):
            difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected(mine[name]))
            assert difference.max() <= 1, name
    assert photos.held_out is None


def test_archives_hold_the_same_as_the_folder(files: Files, tmp_path: Path) -> None:
    photos = load(tree_of(files, tmp_path / "tree"))
    backward = dict(reversed(files.items()))
    nested = {f"./x/y/{name}": content for name, content in backward.items()}
    for path in (
        zip_of(files, tmp_path / "stored.zip", zipfile.ZIP_STORED),
        zip_of(nested, tmp_path / "deflated.zip"),
        zip_of(backward, tmp_path / "bzip2.zip", zipfile.ZIP_BZIP2),
        tar_of(backward, tmp_path / "plain.tar"),
        tar_of(nested, tmp_path / "packed.tar.gz"),
    ):
        others = load(path)
        assert others.train.fingerprint == photos.train.fingerprint == others.val.fingerprint
        for one, other in ((photos.train, others.train), (photos.val, others.val), (photos.test, others.test)):
            assert one is not None
            assert other is not None
            assert digest(all_pixels(one)) == digest(all_pixels(other)), path
            assert names(one) == names(other)


def test_names_in_gbk(tmp_path: Path) -> None:
    """As programs on a Chinese Windows write them: bytes of GBK, without a flag that would say what they are."""
    with zipfile.ZipFile(tmp_path / "gbk.zip", "w") as archive:
        for name, content in some_files(3, "val").items():
            archive.writestr(Unflagged(name.encode("gbk").decode("cp437")), content)
    assert "狗".encode("gbk") in (tmp_path / "gbk.zip").read_bytes()
    photos = load(tmp_path / "gbk.zip")
    assert photos.train.classes == CLASSES
    assert next(photos.train.read([(0, 9)])).shape == (9, 3, SIZE, SIZE)


class Unflagged(zipfile.ZipInfo):
    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("cp437"), self.flag_bits & ~0x800


def test_class_folders_without_a_split_are_train(tmp_path: Path) -> None:
    bare = {name.split("/", 1)[1]: content for name, content in some_files(12).items()}
    photos = load(tree_of(bare, tmp_path / "tree"))
    for other in (
        load(zip_of({f"top/{name}": content for name, content in bare.items()}, tmp_path / "bare.zip")),
        load(tar_of(bare, tmp_path / "bare.tgz")),
        load(tree_of(some_files(12), tmp_path / "train")),
    ):
        assert (names(other.train), names(other.val)) == (names(photos.train), names(photos.val))
        assert digest(all_pixels(other.train)) == digest(all_pixels(photos.train))
        assert other.train.fingerprint == photos.train.fingerprint
    assert photos.test is None


def test_valid_is_val_and_both_are_not_mixed(files: Files, tmp_path: Path) -> None:
    renamed = {name.replace("val/", "valid/"): content for name, content in files.items()}
    photos = load(tree_of(files, tmp_path / "a"))
    assert load(tree_of(renamed, tmp_path / "b")).train.fingerprint == photos.train.fingerprint
    said = Said()
    load(tree_of({**files, "valid/z/x.png": picture(1, "PNG")}, tmp_path / "a"), said)
    assert "val/ serves as the val set; valid/ is not read." in said


def test_held_out_is_seeded_stratified_and_disjoint(tmp_path: Path) -> None:
    files = {f"train/{name}/{i}.jpg": picture(1) for name, n in zip(CLASSES, (50, 2, 1), strict=True) for i in range(n)}
    files |= {f"train/{name}/{i}.jpg": picture(1) for name in "qr" for i in range(25)}
    path, said = tree_of(files, tmp_path / "tree"), Said()
    photos = load(path, said)
    held_out, kept = set(photos.val.names), set(photos.train.names)
    assert held_out | kept == {name.removeprefix("train/") for name in files}
    assert not held_out & kept
    assert Counter(name.split("/")[0] for name in held_out) == {"a cat": 5, "z": 1, "q": 2, "r": 2}
    assert photos.held_out == {"seed": 3, "share": 0.1, "val": names(photos.val)}
    (summary,) = (line for line in said if "images of 5 classes" in line)
    assert "no separate test set" in summary
    assert "held out by seed 3" in summary
    assert any("Classes without a val image: 狗" in line for line in said)
    other = load(path, seed=4)
    assert set(other.val.names) != held_out
    assert other.train.fingerprint != photos.train.fingerprint
    (path / "train" / "r" / "999.jpg").write_bytes(picture(1))  # one more moves at most one
    assert len(set(load(path).val.names) ^ held_out) <= 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: {}, "has no train folder; found no folder"),
        (
            lambda files: {k: v for k, v in files.items() if not k.startswith("train")},
            "has no train folder; found test/",
        ),
        (lambda files: {k: v for k, v in files.items() if "/z/" in k}, r"has 1 class folder\(s\) \['z'\]"),
        (lambda files: files | {"val/new/1.jpg": b""}, "val/new is a class that train/ lacks"),
        (lambda files: files | {"train/new/x.txt": b""}, "no image in train/new"),
        (
            lambda files: files | {"train/z/000.png": b"", "train/z/001.jpg": b"", "train/z/002.jpg": b""},
            "than a tenth",
        ),
        (
            lambda files: {k: v for i, (k, v) in enumerate(some_files(1).items())},
            "no class has two images",
        ),
        (lambda files: {k.capitalize(): v for k, v in files.items()}, "Test/, Train/, Val/: is that a split"),
        (lambda files: {k.replace("train/", "seg_train/"): v for k, v in files.items()}, "seg_train/: is that a split"),
        (lambda files: {k.replace("val/", "validation/"): v for k, v in files.items()}, "validation/: is that a split"),
        (lambda files: {k.replace("val/", "Testing/"): v for k, v in files.items()}, "Testing/: is that a split"),
    ],
)
def test_refused_in_words(change: Callable[[Files], Files], words: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(UserError, match=words):
        load(tree_of(change(some_files(4, "val", "test")), tree))


def test_an_archive_that_lies_in_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    zip_of(some_files(4), tmp_path / "my data" / "photos.zip")
    with pytest.raises(
        UserError, match=r"found no folder, but photos\.zip: did you mean --data '.*/my data/photos\.zip'\?"
    ):
        load(tmp_path / "my data")


def test_nothing_there(tmp_path: Path) -> None:
    for spec in (tmp_path / "none", tmp_path / "none.zip"):
        with pytest.raises(UserError, match="There is no folder or archive"):
            load(spec)
    (tmp_path / "bad.zip").write_bytes(b"PK not a zip")
    (tmp_path / "file.txt").write_bytes(b"")
    for name, words in (("bad.zip", "cannot be read"), ("file.txt", "neither a folder nor an archive")):
        with pytest.raises(UserError, match=words):
            load(tmp_path / name)


def test_links_are_followed(files: Files, tmp_path: Path) -> None:
    path = tree_of(files, tmp_path / "tree")
    (tmp_path / "away").mkdir()
    (path / "train" / "z").rename(tmp_path / "away" / "elsewhere")
    (path / "train" / "z").symlink_to(tmp_path / "away" / "elsewhere")
    (tmp_path / "link").symlink_to(path)
    clean = load(tree_of(files, tmp_path / "clean"))
    assert load(tmp_path / "link").train.fingerprint == clean.train.fingerprint
    assert digest(all_pixels(load(tmp_path / "link").train)) == digest(all_pixels(clean.train))


def test_thousands_of_classes(tmp_path: Path) -> None:
    content = picture(1)
    path = zip_of({f"train/class {k:04}/{i}.jpg": content for k in range(2500) for i in range(2)}, tmp_path / "f.zip")
    photos = load(path, check=False)
    assert len(photos.train.classes) == len(photos.train) == len(photos.val) == 2500
    assert photos.train.labels_N.tolist() == list(range(2500))
    assert next(photos.val.read([(2490, 2500)])).shape == (10, 3, SIZE, SIZE)


# Files that are broken in a way that the first look sees.
BROKEN = {
    "cut short.jpg": lambda: picture(1)[:-300],
    "cut short.png": lambda: picture(1, "PNG")[:-300],
    "empty.jpg": lambda: b"",
    "text.png": lambda: b"<html>404</html>",
    "cut short.webp": lambda: picture(1, "WEBP")[:-60],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_skipped_and_named(files: Files, name: str, tmp_path: Path) -> None:
    said = Said()
    photos = load(tree_of({**files, f"train/z/{name}": BROKEN[name]()}, tmp_path / "tree"), said)
    assert names(photos.train) == sorted(key.split("/", 1)[1] for key in files if key.startswith("train/"))
    assert "Skipped 1 of 61 image files:" in said
    assert any(line.startswith(f"  train/z/{name}: ") for line in said)
    assert photos.notes == (f"1 of 61 image files skipped, such as train/z/{name}",)
    clean = load(tree_of(files, tmp_path / "clean"))
    assert photos.train.fingerprint == clean.train.fingerprint


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    bad = {f"train/z/bad {i}.jpg": b"bad" for i in range(12)}
    said = Said()
    load(tree_of({**some_files(60), **bad}, tmp_path / "tree"), said)
    assert [line.split(":")[0].strip() for line in said if line.startswith("  ")] == sorted(bad)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named(files: Files, compression: int, tmp_path: Path) -> None:
    """One bit, in the middle of the pixels: the image would be decoded, and be another."""
    path = zip_of(files, tmp_path / "f.zip", compression)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("train/z/001.jpg")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 4
    path.write_bytes(content)
    said = Said()
    assert "z/001.jpg" not in names(load(path, said).train)
    assert any(line.startswith("  train/z/001.jpg: damaged in the archive") for line in said)


def test_a_member_that_unpacks_to_more_than_it_says(files: Files, tmp_path: Path) -> None:
    path = zip_of({**files, "train/z/bomb.png": b"\0" * 10_000_000}, tmp_path / "f.zip")
    content = path.read_bytes().replace((10_000_000).to_bytes(4, "little"), (999).to_bytes(4, "little"))
    path.write_bytes(content)
    said = Said()
    assert "z/bomb.png" not in names(load(path, said).train)
    assert any("train/z/bomb.png: damaged in the archive" in line for line in said)


def test_the_check_decodes_only_what_its_end_does_not_vouch_for(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    real = decode.decode_photo
    monkeypatch.setattr(decode, "decode_photo", lambda content, size: decoded.append(content) or real(content, size))
    padded = picture(7) + b"\0" * 20
    photos = load(tree_of({**files, "train/z/padded.jpg": padded}, tmp_path / "tree"))
    assert decoded == [padded]
    assert "z/padded.jpg" in names(photos.train)


def test_the_check_is_kept_until_a_file_changes(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree_of({**files, "train/z/bad.jpg": b"bad"}, tmp_path / "tree")
    first, looked = load(path), []
    real = scan.examine
    monkeypatch.setattr(scan, "examine", lambda file, size: looked.append(1) or real(file, size))
    again = Said()
    assert load(path, again).train.fingerprint == first.train.fingerprint
    assert (len(looked), "  train/z/bad.jpg: no image that can be read" in again) == (0, True)
    (path / "train/z/001.jpg").write_bytes(b"x" * (path / "train/z/001.jpg").stat().st_size)
    assert "z/001.jpg" not in names(load(path).train)
    assert len(looked) == 61
    for file in (tmp_path / "kept" / "cache").glob("check-*.json"):
        file.write_text(json.dumps({"files": 61, "broken": {"-5": "a lie"}}))
    assert "z/001.jpg" not in names(load(path).train), "a file that is not what it should be is made again"


def test_of_several_processes_one_looks(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks of a first start: what one finds, the others read."""
    path, log = tree_of({**files, "train/z/bad.jpg": b"bad"}, tmp_path / "tree"), tmp_path / "log"
    real = Tree.open

    def counted(tree: Tree, row: int) -> BinaryIO:
        with open(log, "a") as file:
            file.write(f"{row}\n")
        time.sleep(0.002)  # so that all are at it at once
        return real(tree, row)

    def start() -> None:
        assert "z/bad.jpg" not in names(load(path).train)

    monkeypatch.setattr(Tree, "open", counted)
    load(path, may_write=False)
    alone = sorted(log.read_text().split())
    log.unlink()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=start) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert sorted(log.read_text().split()) == alone


def test_of_an_archive_nothing_too_large_is_unpacked(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zip_of({**files, "train/z/large.png": b"\0" * 1_000_000}, tmp_path / "f.zip", zipfile.ZIP_DEFLATED)
    read: list[int] = []
    real = Packed._read
    monkeypatch.setattr(Packed, "_read", lambda packed, *span: read.append(span[1]) or real(packed, *span))
    for module in (places, photo_sources):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 900_000)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("train/z/large.png")
    said = Said()
    assert "z/large.png" not in names(load(path, said, cache=True).train)
    assert "  train/z/large.png: too large a file" in said
    assert info.compress_size not in read


def test_checked_by_workers_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FEW", 0)
    path = tree_of({**some_files(12), "train/z/bad.jpg": b"bad"}, tmp_path / "tree")
    results = [load(path, said := Said(), workers=workers, may_write=False) and said for workers in (0, 2)]
    assert results[0] == results[1]
    assert any("bad.jpg" in line for line in results[1])


def test_a_dry_run_writes_nothing(files: Files, tmp_path: Path) -> None:
    tar_of(files, tmp_path / "packed.tar.gz")
    tree_of(files, tmp_path / "tree")
    before = sorted(tmp_path.rglob("*"))
    for name in ("tree", "packed.tar.gz"):
        assert len(load(tmp_path / name, may_write=False, cache=True).train) == 36
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "file" / "kept"))
    said = Said()
    assert len(load(tree_of(files, tmp_path / "tree"), said, cache=True).train) == 36
    assert sum("cannot be written" in line for line in said) == 3
    with pytest.raises(UserError, match="must be unpacked first"):
        load(tar_of(files, tmp_path / "packed.tar.gz"))


def upright(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture(1, "PNG"))) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(
            buffer, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {})
        )
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_photos_stand_upright(kind: str) -> None:
    with decode.quiet_pillow():
        plain, turned = decode.decode_photo(picture(1, "PNG"), 32), decode.decode_photo(upright(kind), 32)
    assert not isinstance(plain, str)
    assert not isinstance(turned, str)
    assert (plain.int() - turned.int()).abs().float().mean() < (1 if kind == "PNG" else 12)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(2000, 1500, (32, 43)), (90, 1000, (128, 32)), (20, 10, (32, 64))]
)
def test_the_shorter_side_is_what_is_asked_for(width: int, height: int, size: tuple[int, int]) -> None:
    """Also of a JPEG that is decoded at an eighth of its size, of a long one, whose middle is taken, of a small one."""
    ramp = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    with decode.quiet_pillow():
        photo = decode.decode_photo(buffer.getvalue(), 32)
    assert not isinstance(photo, str)
    assert tuple(photo.shape) == (3, *size)
    middle = np.asarray(Image.fromarray(ramp.astype(np.uint8)).resize((size[1], height), Image.Resampling.BOX))[
        height // 2
    ]
    if width > 100:
        assert np.abs(photo[:, size[0] // 2].T.numpy().astype(int) - middle).max() <= 4


def test_texts() -> None:
    words = ["", "a cat/1.jpg", "狗", "\udcff.png", "", "z" * 1000]
    texts = Texts(words)
    assert (list(texts), len(texts), texts[-1], texts[1:3]) == (words, 6, words[-1], words[1:3])
    with pytest.raises(IndexError):
        texts[6]
    assert list(Texts([])) == []


def test_a_set_says_what_it_is(files: Files, tmp_path: Path) -> None:
    photos = load(tree_of(files, tmp_path / "tree"))
    assert (photos.train.size, photos.train.channels, len(photos.train)) == (SIZE, 3, 36)
    assert photos.train.fingerprint["train"]["images"] == {name: 12 for name in CLASSES}
    assert "tree" not in json.dumps(photos.train.fingerprint, ensure_ascii=False)
    assert photos.to(torch.device("meta")).val.labels_N.is_meta
    os.rename(tmp_path / "tree", tmp_path / "moved")
    assert load(tmp_path / "moved").train.fingerprint == photos.train.fingerprint
