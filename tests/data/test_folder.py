"""Folders and archives of images. The oracle: the arrays that were written, Pillow called directly, hashlib."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import tar_of
from PIL import Image

from pitstop.data import decode, folder
from pitstop.data.folder import load_folder
from pitstop.data.images import ImageSet
from pitstop.errors import UserError

Files = dict[str, bytes]
SIZE = 16


def pixels(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def tree_of(files: Files, folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zip_of(files: Files, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def files() -> Files:
    """Thirty good images, ten of each class in train, two in test: room for a few bad ones below a tenth."""
    names = ["a cat", "狗", "zebra"]
    train = {f"train/{name}/{i}.png": encoded(pixels(100 * k + i)) for k, name in enumerate(names) for i in range(10)}
    test = {f"test/{name}/t{i}.png": encoded(pixels(900 + 10 * k + i)) for k, name in enumerate(names) for i in (0, 1)}
    return {**train, **test}


def load(path: Path, cache: Path | None = None, size: int = SIZE) -> tuple[ImageSet, ImageSet, list[str]]:
    said: list[str] = []
    train, test = load_folder(path, image_size=size, cache=cache, say=said.append)
    return train, test, said


def same(one: ImageSet, other: ImageSet) -> bool:
    return (
        torch.equal(one.images_NCHW, other.images_NCHW)
        and torch.equal(one.labels_N, other.labels_N)
        and (one.classes, one.fingerprint) == (other.classes, other.fingerprint)
    )


def test_tree_zip_and_tar_are_the_same_whatever_their_order(files: Files, tmp_path: Path) -> None:
    backward = dict(reversed(files.items()))
    train, test, _ = load(tree_of(files, tmp_path / "tree"))
    assert train.classes == ("a cat", "zebra", "狗")
    assert train.labels_N.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert np.array_equal(train.images_NCHW[3].permute(1, 2, 0).numpy(), pixels(3))
    assert np.array_equal(test.images_NCHW[3].permute(1, 2, 0).numpy(), pixels(921))
    assert train.fingerprint == test.fingerprint
    assert train.fingerprint["train"]["images"] == {"a cat": 10, "zebra": 10, "狗": 10}
    nested = {f"./x/y/{name}": data for name, data in backward.items()}
    for other in (
        tree_of(backward, tmp_path / "again"),
        zip_of(files, tmp_path / "f.zip"),
        zip_of(backward, tmp_path / "b.zip"),
        tar_of(backward, tmp_path / "b.tar.gz"),
        tar_of(files, tmp_path / "f.tgz"),
        tar_of(nested, tmp_path / "n.tar"),
        tree_of(nested, tmp_path / "nested"),
    ):
        other_train, other_test, _ = load(other)
        assert same(train, other_train), other
        assert same(test, other_test), other


def test_order_does_not_depend_on_the_file_system(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _, _ = load(tree_of(files, tmp_path / "tree"))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name, reverse=True))
    assert same(train, load(tmp_path / "tree")[0])


def test_fingerprint_follows_names_and_sizes(files: Files, tmp_path: Path) -> None:
    base = load(zip_of(files, tmp_path / "a.zip"))[0].fingerprint
    renamed = {name.replace("train/zebra/9", "train/zebra/10"): data for name, data in files.items()}
    longer = {**files, "train/zebra/9.png": files["train/zebra/9.png"] + b" "}
    for changed in (renamed, longer):
        assert load(zip_of(changed, tmp_path / "b.zip"))[0].fingerprint != base
    assert load(tmp_path / "a.zip", size=8)[0].fingerprint != base


def grey16() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE))


def upright() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels(1)).transpose(Image.Transpose.ROTATE_90), exif=exif)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(i)).quantize(32) for i in (1, 2)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def see_through(mode: str) -> bytes:
    rgba = np.concatenate([pixels(1), np.zeros((SIZE, SIZE, 1), np.uint8)], axis=2)
    return encoded(Image.fromarray(rgba).convert(mode))


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


ODD: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "exif.png": (upright, lambda: pixels(1)),
    "grey.png": (lambda: encoded(pixels(1)[..., 0]), lambda: pixels(1)[..., :1].repeat(3, 2)),
    "palette.bmp": (
        lambda: encoded(Image.fromarray(pixels(1)).quantize(16), "BMP"),
        lambda: rgb(Image.fromarray(pixels(1)).quantize(16)),
    ),
    "cmyk.tif": (
        lambda: encoded(Image.fromarray(pixels(1)).convert("CMYK"), "TIFF"),
        lambda: rgb(Image.fromarray(pixels(1)).convert("CMYK")),
    ),
    "cmyk.jpg": (
        lambda: encoded(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "JPEG", quality=100),
        lambda: np.full((SIZE, SIZE, 3), (255, 0, 0), np.uint8),
    ),
    "deep.png": (lambda: encoded(grey16()), lambda: np.rint(np.asarray(grey16()) / 257)[..., None].repeat(3, 2)),
    "deep.tif": (
        lambda: encoded(grey16(), "TIFF"),
        lambda: np.rint(np.asarray(grey16()) / 257)[..., None].repeat(3, 2),
    ),
    "clear.png": (lambda: see_through("RGBA"), lambda: np.full((SIZE, SIZE, 3), 255)),
    "clear-grey.png": (lambda: see_through("LA"), lambda: np.full((SIZE, SIZE, 3), 255)),
    "bit.png": (lambda: encoded(Image.new("1", (SIZE, SIZE), 1)), lambda: np.full((SIZE, SIZE, 3), 255)),
    "moving.gif": (lambda: animation("GIF"), lambda: rgb(Image.fromarray(pixels(1)).quantize(32))),
    "moving.png": (lambda: animation("PNG"), lambda: rgb(Image.fromarray(pixels(1)).quantize(32))),
    "large.jpg": (
        lambda: encoded(np.kron(pixels(1), np.ones((20, 10, 1), np.uint8)), "JPEG"),
        lambda: np.asarray(
            Image.open(io.BytesIO(encoded(np.kron(pixels(1), np.ones((20, 10, 1), np.uint8)), "JPEG"))).resize(
                (SIZE, SIZE), Image.Resampling.BILINEAR
            )
        ),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_become_rgb(files: Files, tmp_path: Path, name: str) -> None:
    data, expected = ODD[name]
    train, _, said = load(zip_of({**files, f"train/a cat/!{name}": data()}, tmp_path / "f.zip"))
    assert np.allclose(train.images_NCHW[0].permute(1, 2, 0).numpy(), expected(), atol=1 if name == "cmyk.jpg" else 0)
    assert any("Resized 1 images" in line for line in said) == (name == "large.jpg")


def huge() -> bytes:
    return encoded(Image.new("1", (9000, 8000)))


def bomb() -> bytes:
    return encoded(Image.new("1", (20000, 10000)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "no image that can be read"),
        (lambda: b"<html>404</html>", "no image that can be read"),
        (lambda: encoded(pixels(0))[:300], "truncated"),
        (lambda: encoded(pixels(0), "JPEG")[:-100], "truncated"),
        (lambda: encoded(Image.new("RGB", (1, 1)), "GIF"), "1x1 pixels"),
        (lambda: encoded(Image.new("RGB", (7, 90))), "7x90 pixels"),
        (huge, "9000x8000 pixels"),
        (lambda: encoded(Image.new("1", (10000, 9500))), "10000x9500 pixels"),  # Pillow warns
        (bomb, "more than 64 million"),  # Pillow raises
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "no image that can be read"),
        (lambda: encoded(Image.new("F", (SIZE, SIZE)), "TIFF"), "floating-point"),
    ],
)
def test_unusable_images_are_skipped_and_named(
    files: Files, tmp_path: Path, data: Callable[[], bytes], reason: str
) -> None:
    base, _, _ = load(zip_of(files, tmp_path / "f.zip"))
    train, _, said = load(zip_of({**files, "train/a cat/!bad.png": data()}, tmp_path / "g.zip"))
    assert same(base, train)
    assert said[0] == "Skipped 1 of 37 image files:"
    assert said[1].startswith("  train/a cat/!bad.png: ")
    assert reason in said[1]


def test_a_file_too_large_is_not_read(files: Files, tmp_path: Path) -> None:
    tree = tree_of({**files, "train/a cat/!scan.tif": b""}, tmp_path / "tree")
    os.truncate(tree / "train" / "a cat" / "!scan.tif", 64_100_000)
    train, _, said = load(tree)
    assert len(train) == 30
    assert said[1] == "  train/a cat/!scan.tif: 64.1 MB, too large for a small image (at most 64 MB)"


def test_few_bytes_are_in_memory_at_once(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, most = 0, 0
    read, decoded = zipfile.ZipFile.read, decode.decode

    def count_read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        nonlocal waiting, most
        data = read(archive, info)
        waiting += len(data)
        most = max(most, waiting)
        return data

    def count_decode(data: bytes, size: int) -> object:
        nonlocal waiting
        waiting -= len(data)
        return decoded(data, size)

    monkeypatch.setattr(zipfile.ZipFile, "read", count_read)
    monkeypatch.setattr(decode, "decode", count_decode)
    largest = max(map(len, files.values()))
    monkeypatch.setattr(folder, "WAVE_BYTES", 3 * largest)
    assert len(load(zip_of(files, tmp_path / "f.zip"))[0]) == 30
    assert waiting == 0
    assert 2 * largest < most < 4 * largest


def test_all_are_named_and_more_than_a_tenth_is_refused(files: Files, tmp_path: Path) -> None:
    many = {f"train/zebra/x{i}.png": encoded(pixels(i)) for i in range(40)}
    bad = {f"train/狗/bad{i}.png": b"" for i in range(6)}
    _, _, said = load(zip_of({**files, **many, **bad}, tmp_path / "f.zip"))
    assert sum("bad" in line for line in said) == 6
    with pytest.raises(UserError, match=r"6 of 42 image files cannot be used[^$]*bad0.png"):
        load(zip_of({**files, **bad}, tmp_path / "g.zip"))


def test_clutter_is_ignored(files: Files, tmp_path: Path) -> None:
    base, base_test, _ = load(zip_of(files, tmp_path / "f.zip"))
    silent = ("__MACOSX/train/a cat/._0.png", "train/a cat/Thumbs.db", "train/.ipynb_checkpoints/0.png", ".git/x")
    counted = ("train/a cat/notes.txt", "train/stray.png")
    cluttered = {**files, **{name: encoded(pixels(5)) for name in (*silent, *counted)}}
    for path in (zip_of(cluttered, tmp_path / "g.zip"), tree_of(cluttered, tmp_path / "tree")):
        train, test, said = load(path)
        assert same(base, train)
        assert same(base_test, test)
        assert said[0] == "Ignored 2 files that are no images in a class folder, such as train/a cat/notes.txt."
        assert len(said) == 2


def test_links_in_a_tree(files: Files, tmp_path: Path) -> None:
    base, _, _ = load(zip_of(files, tmp_path / "f.zip"))
    tree = tree_of(files, tmp_path / "tree")
    (tree / "train" / "zebra").rename(tmp_path / "elsewhere")
    (tree / "train" / "zebra").symlink_to(tmp_path / "elsewhere")
    (tree / "train" / "狗" / "0.png").rename(tmp_path / "one.png")
    (tree / "train" / "狗" / "0.png").symlink_to(tmp_path / "one.png")
    (tree / "train" / "狗" / "around").symlink_to(tree / "train")
    (tree / "train" / "狗" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    train, _, said = load(tree)
    assert same(base, train)
    assert said[0].startswith("Refused 2: train/狗/around: a link to a folder around it; train/狗/lost.png: No such")


def test_members_that_lead_out_are_refused(files: Files, tmp_path: Path) -> None:
    base, _, _ = load(zip_of(files, tmp_path / "f.zip"))
    evil = ["/train/a cat/abs.png", "train/a cat/../../../up.png", "C:/train/a cat/c.png"]
    bad = {**files, **{name: encoded(pixels(1)) for name in evil}}
    tar = tar_of(bad, tmp_path / "g.tar")
    with tarfile.open(tar, "a") as archive:
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(f"train/a cat/{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    archive_zip = zip_of(bad, tmp_path / "g.zip")
    with zipfile.ZipFile(archive_zip, "a") as archive_file:
        link = zipfile.ZipInfo("train/a cat/soft.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive_file.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    for path, number in ((tar, 6), (archive_zip, 4)):
        train, _, said = load(path)
        assert same(base, train)
        assert said[0].startswith(f"Refused {number}: ")
        assert "up.png: its name leads out" in said[0]
    assert sorted(tmp_path.rglob("*")) == before, "nothing was extracted"


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_zip_names_without_the_utf8_flag(files: Files, tmp_path: Path, encoding: str) -> None:
    base, _, _ = load(zip_of(files, tmp_path / "f.zip"))
    # Placeholders of the same length are replaced in the finished archive, as no library writes such names.
    raw = "狗".encode(encoding)
    stand_in = b"#" * len(raw)
    data = zip_of({n.replace("狗", stand_in.decode()): d for n, d in files.items()}, tmp_path / "g.zip").read_bytes()
    (tmp_path / "g.zip").write_bytes(data.replace(b"/" + stand_in + b"/", b"/" + raw + b"/"))
    assert same(base, load(tmp_path / "g.zip")[0])


@pytest.mark.parametrize(("encoding", "system"), [("gbk", 0), ("gbk", 11), ("utf-8", 3)])
def test_zip_names_that_seem_right_in_two_encodings(files: Files, tmp_path: Path, encoding: str, system: int) -> None:
    """猫 and 女 in GBK are è and Ů in UTF-8: beside another name the archive tells, alone the program that wrote it."""

    class Unflagged(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode(encoding), self.flag_bits

    right = ("猫", "女") if encoding == "gbk" else ("è", "Ů")
    for names in (right, (right[0], "狗")):
        path = tmp_path / "f.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                for old, new in zip(("a cat", "zebra"), names, strict=True):
                    if f"/{old}/" in name:
                        info = Unflagged(name.replace(old, new))
                        info.create_system = system
                        archive.writestr(info, content)
        assert load(path)[0].classes == tuple(sorted(names))


def test_damaged_and_foreign_archives(files: Files, tmp_path: Path) -> None:
    whole = tar_of(files, tmp_path / "f.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.zip").write_bytes(b"<html>")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    for name, message in (("cut.tar.gz", "cannot be read"), ("page.zip", "cannot be read"), ("x.rar", "neither")):
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)
    archive = zip_of(files, tmp_path / "f.zip")
    data = bytearray(archive.read_bytes())
    data[data.index(files["train/zebra/4.png"]) + 50] ^= 1
    archive.write_bytes(data)
    _, _, said = load(archive)
    assert "train/zebra/4.png: damaged in the archive" in said[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {n: d for n, d in f.items() if "test/" in n}, "has no train folder; found test/"),
        (lambda f: {n: d for n, d in f.items() if "train/" in n}, "has no test folder; found train/"),
        (lambda f: {n.split("/", 1)[1]: d for n, d in f.items()}, "has no train folder; found a cat/, zebra/, 狗/"),
        (lambda f: {n: d for n, d in f.items() if "狗" in n}, "train/ has 1 class folder"),
        (lambda f: {n: d for n, d in f.items() if "train/狗" not in n}, "test/狗 is a class that train/ lacks"),
        (lambda f: {**f, "train/empty/readme.txt": b""}, "no image in train/empty"),
        (lambda f: {**f, "train/bad/0.png": b""}, "no usable image in train/bad"),
        (lambda f: {}, "no train folder; found no folder"),
    ],
)
def test_other_layouts_are_explained(
    files: Files, tmp_path: Path, change: Callable[[Files], Files], message: str
) -> None:
    for path in (zip_of(change(files), tmp_path / "f.zip"), tree_of(change(files), tmp_path / "tree")):
        path.mkdir(exist_ok=True) if path.suffix != ".zip" else None
        with pytest.raises(UserError, match=message):
            load(path)


def test_val_serves_and_test_is_preferred(files: Files, tmp_path: Path) -> None:
    _, test, _ = load(zip_of(files, tmp_path / "f.zip"))
    as_val = {name.replace("test/", "val/"): data for name, data in files.items()}
    _, val, said = load(zip_of(as_val, tmp_path / "v.zip"))
    assert torch.equal(test.images_NCHW, val.images_NCHW)
    assert said[0] == "val/ serves as the test set."
    both = {**files, "val/zebra/0.png": encoded(pixels(7))}
    _, used, said = load(zip_of(both, tmp_path / "b.zip"))
    assert same(used, test)
    assert said[0] == "test/ serves as the test set; val/ is not read."


def test_class_without_test_images_is_said(files: Files, tmp_path: Path) -> None:
    fewer = {name: data for name, data in files.items() if "test/狗" not in name}
    _, test, said = load(zip_of(fewer, tmp_path / "f.zip"))
    assert said[0] == "Classes without a test image: 狗."
    assert test.classes == ("a cat", "zebra", "狗")


def test_cache_is_used_and_repeats_what_was_skipped(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_of({**files, "train/狗/bad.png": b""}, tmp_path / "f.zip")
    train, test, _ = load(archive, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("pitstop.data.decode.decode", lambda *args: pytest.fail("decoded again"))
        again_train, again_test, said = load(archive, tmp_path / "cache")
    assert same(train, again_train)
    assert same(test, again_test)
    assert "1 of 37 image files skipped, such as train/狗/bad.png" in said[0]
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    load(archive, tmp_path / "cache", size=8)
    load(zip_of(files, tmp_path / "g.zip"), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def test_who_waited_for_the_decoding_says_what_was_skipped(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_of({**files, "train/狗/bad.png": b""}, tmp_path / "f.zip")
    load(archive, tmp_path / "others")

    @contextmanager
    def another_process_is_first(lock: Path, **options: object) -> Iterator[None]:
        shutil.copytree(tmp_path / "others", lock.parent, dirs_exist_ok=True)
        yield

    monkeypatch.setattr("pitstop.data.cache.exclusive", another_process_is_first)
    monkeypatch.setattr(decode, "decode", lambda *args: pytest.fail("decoded again"))
    _, _, said = load(archive, tmp_path / "cache")
    assert "1 of 37 image files skipped, such as train/狗/bad.png" in said[0]


def test_a_touched_file_is_decoded_again(files: Files, tmp_path: Path) -> None:
    tree = tree_of(files, tmp_path / "tree")
    image = tree / "train" / "zebra" / "0.png"
    image.write_bytes(encoded(pixels(1), "BMP"))
    load(tree, tmp_path / "cache")
    image.write_bytes(encoded(pixels(2), "BMP"))  # of the same size
    os.utime(image, ns=(1, 1))
    train, _, _ = load(tree, tmp_path / "cache")
    assert np.array_equal(train.images_NCHW[10].permute(1, 2, 0).numpy(), pixels(2))


@pytest.mark.parametrize("where", [20, -5, None])
def test_a_damaged_cache_is_built_again(files: Files, tmp_path: Path, where: int | None) -> None:
    archive = zip_of(files, tmp_path / "f.zip")
    train, _, _ = load(archive, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    good = file.read_bytes()
    data = bytearray(good)
    if where is None:
        del data[1000:]
    else:
        data[where] ^= 1
    file.write_bytes(data)
    again, _, said = load(archive, tmp_path / "cache")
    assert "is damaged" in said[0]
    assert same(train, again)
    assert file.read_bytes() == good


def test_a_full_disk_keeps_no_cache(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    train, _, said = load(zip_of(files, tmp_path / "f.zip"), tmp_path / "cache")
    assert len(train) == 30
    assert sum("are not kept" in line for line in said) == 1
    assert not list((tmp_path / "cache").glob("*safetensors*"))


def test_a_cache_that_cannot_be_made(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    train, _, said = load(zip_of(files, tmp_path / "f.zip"), tmp_path / "file" / "cache")
    assert len(train) == 30
    assert "cannot be written" in said[0]


def test_one_process_builds_and_the_other_waits(files: Files, tmp_path: Path) -> None:
    archive = zip_of(files, tmp_path / "f.zip")
    program = (
        "import time; from pathlib import Path; from pitstop.data import decode, folder; real = decode.decode\n"
        "def slow(data, size):\n"
        f"    time.sleep(0.02); open({str(tmp_path / 'log')!r}, 'a').write('x'); return real(data, size)\n"
        "decode.decode = slow\n"
        f"folder.load_folder(Path({str(archive)!r}), image_size=16, cache=Path({str(tmp_path / 'c')!r}), say=print)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "x" * 36
