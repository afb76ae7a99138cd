"""What `--data` may name where images are photos: a folder or an archive; its splits, and what of it is of use."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import features
from torch import Tensor

from pitstop.data.archive import ARCHIVE_SUFFIXES, Member, open_source
from pitstop.data.cache import Shelf
from pitstop.data.decode import MAX_FILE_BYTES, quiet_pillow
from pitstop.data.doubles import tell_doubles
from pitstop.data.listing import (
    Layout,
    arrange,
    class_and_name,
    content_key,
    listed,
    report_lacking,
    report_skipped,
    require_usual_names,
    tally,
)
from pitstop.data.photos import PhotoSet, Pictures, load_size
from pitstop.data.pixels import BROKEN, Pixels, build_pixels
from pitstop.data.places import has_random_access, place_of, unpacked
from pitstop.data.scan import broken_files
from pitstop.data.texts import Texts
from pitstop.data.workers import NumWorkers, bring, number_of, piece_images
from pitstop.errors import UserError

ROLES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
LAYOUT = (
    "Expected: train/<class>/<images>, and, if you have them, val/<class>/<images> and test/<class>/<images>; or "
    "<class>/<images> alone."
)
HELD_OUT_SHARE = 0.1  # of the training images of a class, where there is no val/
CACHE_VERSION = 1  # raised when the same file would be decoded to other pixels
SAMPLED = 200  # images whose sizes tell how large the cache will be


@dataclass(frozen=True)
class Photos:
    """The splits of a source. `held_out` is what was taken out of train for lack of a val/: its seed, share, names."""

    train: PhotoSet
    val: PhotoSet
    test: PhotoSet | None
    notes: tuple[str, ...]
    held_out: dict[str, Any] | None

    @property
    def splits(self) -> dict[str, PhotoSet]:
        """Those that are there, by name."""
        return {"train": self.train, "val": self.val} | ({"test": self.test} if self.test else {})

    def to(self, device: torch.device) -> "Photos":
        test = self.test.to(device) if self.test else None
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=test)


def load_photos(
    spec: str,
    *,
    image_size: int,
    seed: int,
    cache: bool,
    check: bool,
    may_write: bool,
    say: Callable[[str], None],
    workers: NumWorkers = "auto",
    shelf: Shelf | None = None,
) -> Photos:
    """The photos at `spec`, a directory, .zip, .tar, .tar.gz or .tgz; val selects, test is read at the end.

    Without val/, a tenth of each class of train is held out, by a hash of `seed` and each name. What is decoded,
    checked or unpacked is kept below `PITSTOP_DATA_DIR` (default `data`) if it `may_write` (a dry run may not).
    Neither a cache nor the number of workers changes a pixel.

    Args:
        cache: decode all images once, into a file that is mapped into memory.
        check: look at all files first; those that are broken are skipped.
        shelf: not used, decoded photos are too large to be sent around; `Session.sources` has it.

    Raises:
        UserError: nothing at `spec`, another layout, fewer than two classes, more than a tenth of the images unusable.
    """
    data_dir = Path(os.environ.get("PITSTOP_DATA_DIR") or "data").expanduser()
    path = _source_path(spec, data_dir, may_write, say)
    with open_source(path, bare=True) as source:
        require_usual_names(source, path, LAYOUT)
        layout = arrange(source, path, ROLES, required=("train",), expected=LAYOUT)
    for note in layout.notes:
        say(note)
    members = [member for split in layout.splits.values() for member in split]
    # Of a dry run, which reads nothing, the archive may lie where nothing can be read.
    pictures = Pictures(place_of(path, members), Texts(member.name for member in members), load_size(image_size), say)
    processes = number_of(workers, torch.device("cuda"))  # nothing trains yet
    skipped = {row: "too large a file" for row, member in enumerate(members) if member.num_bytes > MAX_FILE_BYTES}
    if check := check and (path.is_dir() or has_random_access(path)):
        key = content_key(layout, "check")
        skipped |= broken_files(pictures, key, data_dir / "cache", workers=processes, may_write=may_write, say=say)
    notes = report_skipped({members[row].name: why for row, why in skipped.items()}, len(members), path, say)
    if cache and may_write:
        key = content_key(layout, CACHE_VERSION, pictures.shorter, _decoders())
        pictures.pixels = _cached(pictures, key, data_dir / "cache", processes, say)
    photos = _photos(layout, skipped, pictures, path, image_size, seed, workers, [*layout.notes, *notes], say)
    if check:
        file = data_dir / "cache" / f"alike-{content_key(layout, 'alike', photos.train.fingerprint)}.json"
        tell_doubles(photos.splits, [member.num_bytes for member in members], file, may_write=may_write, say=say)
    return photos


def _source_path(spec: str, data_dir: Path, may_write: bool, say: Callable[[str], None]) -> Path:
    """Where the photos of `spec` can be read one by one: a compressed tar is unpacked first, once."""
    path = Path(spec).expanduser().absolute()
    if not spec or not path.exists():
        raise UserError(
            f"There is no folder or archive {spec!r}. --data takes the path of a folder or an archive "
            f"({', '.join(ARCHIVE_SUFFIXES)}). {LAYOUT}"
        )
    if (path.is_dir() or path.name.lower().endswith(ARCHIVE_SUFFIXES)) and not has_random_access(path):
        return unpacked(path, data_dir / "unpacked", may_write=may_write, say=say) or path
    return path


def _decoders() -> list[str | None]:
    """What has a part in the pixels: other versions may round otherwise, and a cache must not change a bit."""
    return [torch.__version__, PIL.__version__, features.version("jpg")]


def _cached(pictures: Pictures, key: str, folder: Path, workers: int, say: Callable[[str], None]) -> Pixels | None:
    number = len(pictures.names)

    def piece(rows: range) -> tuple[NDArray[np.int32], Tensor]:
        """Sizes and pixels of a few images, flat; of one that cannot be decoded -1, -1, and no pixel."""
        images = [pictures.decode(row) for row in rows]
        sizes = [(BROKEN, BROKEN) if isinstance(image, str) else image.shape[1:] for image in images]
        whole = [image.permute(1, 2, 0).flatten() for image in images if not isinstance(image, str)]
        return np.array(sizes, np.int32), torch.cat([torch.empty(0, dtype=torch.uint8), *whole])

    def decoded(first: int) -> Iterator[tuple[NDArray[np.int32], Tensor]]:
        length = piece_images(3 * 2 * pictures.shorter**2, workers)
        return bring(piece, (range(a, min(a + length, number)) for a in range(first, number, length)), workers)

    def needed_bytes() -> int:
        with quiet_pillow():
            sample = [piece(range(row, row + 1))[1].nbytes for row in range(0, number, -(-number // SAMPLED))]
        return sum(sample) * number // len(sample)

    return build_pixels(folder, key, number, decoded, needed_bytes, say)


def _photos(
    layout: Layout,
    skipped: Mapping[int, str],
    pictures: Pictures,
    path: Path,
    image_size: int,
    seed: int,
    workers: NumWorkers,
    notes: list[str],
    say: Callable[[str], None],
) -> Photos:
    rows: dict[str, list[tuple[int, Member]]] = {}
    begin = 0
    for role, members in layout.splits.items():
        rows[role] = [(row, member) for row, member in enumerate(members, begin) if row not in skipped]
        begin += len(members)
    held_out = None
    if "val" not in rows:
        rows["train"], rows["val"] = _divided(rows["train"], seed, path)
        names = [member.name.split("/", 1)[1] for _, member in rows["val"]]
        held_out = {"seed": seed, "share": HELD_OUT_SHARE, "val": names}
    fingerprint: dict[str, Any] = {"source": "photos", "classes": list(layout.classes)}
    fingerprint |= {role: tally([member for _, member in chosen]) for role, chosen in sorted(rows.items())}
    sets = {
        role: _photo_set(layout.classes, chosen, fingerprint, image_size, pictures, workers)
        for role, chosen in rows.items()
    }
    counts = {role: np.diff(photos.borders_K) for role, photos in sets.items()}
    if lost := [name for name, count in zip(layout.classes, counts["train"], strict=True) if count == 0]:
        raise UserError(f"{path}: no usable image in {listed('train', lost)}.")
    for role in ("val", "test"):
        if role in sets and not len(sets[role]):
            raise UserError(f"{path}: no usable image in {role}/.")
        if role in sets:
            report_lacking(layout.classes, counts[role].tolist(), role, say)
    lengths = ", ".join(f"{len(photos):,} {role}" for role, photos in sets.items())
    say(
        f"{path.name}: {lengths} images of {len(layout.classes):,} classes"
        + (f"; val is a tenth of train/, held out by seed {seed}" if held_out else "")
        + ("." if "test" in sets else "; no separate test set.")
    )
    return Photos(sets["train"], sets["val"], sets.get("test"), tuple(notes), held_out)


def _divided(
    train: Sequence[tuple[int, Member]], seed: int, path: Path
) -> tuple[list[tuple[int, Member]], list[tuple[int, Member]]]:
    """Holds out a tenth of each class that has two images or more, at least one: those with the lowest hashes, so that
    a file more or less moves few of the others."""
    kept, held_out = [], []
    for _, group in groupby(train, key=lambda item: class_and_name(item[1])[0]):
        mine = list(group)
        hashes = [hashlib.sha256(f"{seed}/{member.name}".encode("utf-8", "replace")).digest() for _, member in mine]
        number = max(1, round(HELD_OUT_SHARE * len(mine))) if len(mine) > 1 else 0
        chosen = set(sorted(range(len(mine)), key=hashes.__getitem__)[:number])
        kept += [item for i, item in enumerate(mine) if i not in chosen]
        held_out += [mine[i] for i in sorted(chosen)]
    if not held_out:
        raise UserError(f"{path}: no class has two images, so that none can be held out for val/. {LAYOUT}")
    return kept, held_out


def _photo_set(
    classes: tuple[str, ...],
    chosen: Sequence[tuple[int, Member]],
    fingerprint: dict[str, Any],
    image_size: int,
    pictures: Pictures,
    workers: NumWorkers,
) -> PhotoSet:
    number_of_class = {name: number for number, name in enumerate(classes)}
    labels_N = torch.tensor([number_of_class[class_and_name(member)[0]] for _, member in chosen], dtype=torch.int64)
    counts_K = np.bincount(labels_N.numpy(), minlength=len(classes))
    return PhotoSet(
        classes,
        labels_N,
        Texts(member.name.split("/", 1)[1] for _, member in chosen),
        fingerprint,
        image_size,
        pictures,
        rows_N=np.array([row for row, _ in chosen], np.int64),
        borders_K=np.concatenate([[0], np.cumsum(counts_K)]),
        workers=workers,
        device=torch.device("cpu"),
    )
