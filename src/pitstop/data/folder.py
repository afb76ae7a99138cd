"""Images in folders named by their class, in a directory or an archive: decoded once, in an order of their names."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pitstop.data import decode as decoding
from pitstop.data.archive import Member, Source, open_source
from pitstop.data.cache import Decoded, Shelf, load_or_build
from pitstop.data.images import ImageSet
from pitstop.data.listing import (
    Layout,
    arrange,
    class_and_name,
    content_key,
    listed,
    report_lacking,
    report_skipped,
    tally,
)
from pitstop.errors import UserError

LAYOUT = "Expected: train/<class>/<images> and test/<class>/<images> (val/ or valid/ will do for test/)."
ROLES = {"train": ("train",), "test": ("test", "val", "valid")}
CACHE_VERSION = 1  # raised when the same file would be decoded to other pixels
THREADS = 4
WAVE = 64  # most files in memory at once
WAVE_BYTES = 64_000_000  # what is in memory is decoded as soon as it has this many
SMALL_BYTES = 16_384  # below, Pillow holds the interpreter for so much of the time that threads only hinder


def load_folder(
    path: Path,
    *,
    image_size: int,
    cache: Path | None,
    say: Callable[[str], None],
    shelf: Shelf | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Train and test set of `path`, a directory, .zip, .tar, .tar.gz or .tgz; 3 channels, image_size x image_size.

    Classes are sorted by name, images by class and name. `cache` is the folder where decoded images are kept (None:
    nowhere). What is ignored, refused, skipped or resized is said.

    Raises:
        UserError: another layout than train/<class>/*, test/<class>/*; more than a tenth of the images unusable.
    """
    with open_source(path) as source:
        layout = arrange(source, path, ROLES, required=ROLES, expected=LAYOUT)
        for note in layout.notes:
            say(note)

        def build() -> Decoded:
            return _decode_all(source, layout, image_size, path, say)

        if cache is None:
            decoded = build()
        else:
            file = cache / f"{content_key(layout, CACHE_VERSION, image_size)}.safetensors"
            decoded = load_or_build(file, build, say=say, shelf=shelf)
    train, test = decoded.train, decoded.test
    report_lacking(test.classes, _per_class(test), "test", say)
    say(f"{path.name}: {len(train):,} train and {len(test):,} test images of {len(train.classes)} classes.")
    return train, test


def _decode_all(
    source: Source,
    layout: Layout,
    image_size: int,
    path: Path,
    say: Callable[[str], None],
) -> Decoded:
    members = [member for split in layout.splits.values() for member in split]
    row_of = {member.name: row for row, member in enumerate(members)}
    images_NCHW = torch.empty((len(members), 3, image_size, image_size), dtype=torch.uint8)
    rows = images_NCHW.numpy()
    skipped: dict[str, str] = {}
    num_resized = 0
    for member, outcome in _outcomes(source, members, image_size):
        if isinstance(outcome, str):
            skipped[member.name] = outcome
        else:
            rows[row_of[member.name]], resized = outcome
            num_resized += resized
    notes = _report(skipped, num_resized, len(members), image_size, path, say)
    sets, tallies = [], {}
    for split, name in zip(layout.splits.values(), ("train", "test"), strict=True):
        good = [member for member in split if member.name not in skipped]
        tallies[name] = tally(good)
        rows_N = torch.tensor([row_of[member.name] for member in good], dtype=torch.int64)
        labels_N = torch.tensor([layout.classes.index(class_and_name(member)[0]) for member in good])
        sets.append((images_NCHW[rows_N], labels_N))
    unusable = [name for name in layout.classes if name not in tallies["train"]["images"]]
    if unusable or not len(sets[1][0]):
        raise UserError(f"{path}: no usable image in {listed('train', unusable) or 'the test set'}.")
    fingerprint = {"source": "folder", "classes": list(layout.classes), "image_size": image_size, **tallies}
    train, test = (ImageSet(images, labels, layout.classes, fingerprint) for images, labels in sets)
    return Decoded(train, test, notes)


def _outcomes(
    source: Source, members: list[Member], image_size: int
) -> Iterator[tuple[Member, tuple[Any, bool] | str]]:
    """Each member with its pixels (3, image_size, image_size) and whether they were resized, or why it is skipped."""

    def decode(item: tuple[Member, bytes | str]) -> tuple[Member, tuple[Any, bool] | str]:
        member, data = item
        return member, data if isinstance(data, str) else decoding.decode(data, image_size)

    limit = decoding.MAX_FILE_BYTES
    readable = [member for member in members if member.num_bytes <= limit]
    for member in set(members) - set(readable):
        yield member, f"{member.num_bytes / 1e6:,.1f} MB, too large for a small image (at most {limit / 1e6:.0f} MB)"
    mean_bytes = sum(member.num_bytes for member in readable) / max(1, len(readable))
    with decoding.quiet_pillow(), ThreadPoolExecutor(THREADS) as pool:
        apply: Callable[..., Iterable[Any]] = pool.map if mean_bytes > SMALL_BYTES else map
        for wave in _waves(source.read(readable)):
            yield from apply(decode, wave)


def _waves(contents: Iterable[tuple[Member, bytes | str]]) -> Iterator[list[tuple[Member, bytes | str]]]:
    """`contents` in groups, bounded by number and bytes; a group is emptied before the next one is read."""
    wave: list[tuple[Member, bytes | str]] = []
    num_bytes = 0
    for member, data in contents:
        wave.append((member, data))
        num_bytes += len(data)
        if len(wave) == WAVE or num_bytes >= WAVE_BYTES:
            yield wave
            wave.clear()
            num_bytes = 0
    if wave:
        yield wave


def _report(
    skipped: dict[str, str], num_resized: int, num_files: int, size: int, path: Path, say: Callable[[str], None]
) -> list[str]:
    """Says what was skipped and resized, and returns it in a few words."""
    notes = report_skipped(skipped, num_files, path, say)
    if num_resized:
        say(f"Resized {num_resized:,} images to {size}x{size}.")
        notes.append(f"{num_resized:,} resized to {size}x{size}")
    return notes


def _per_class(images: ImageSet) -> list[int]:
    return [int(number) for number in np.bincount(images.labels_N.numpy(), minlength=len(images.classes))]
