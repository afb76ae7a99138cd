"""Images in folders named by their class, in a directory or an archive: decoded once, in an order of their names."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from pitstop import files
from pitstop.data import decode as decoding
from pitstop.data.archive import Member, Source, open_source
from pitstop.data.cache import Decoded, Shelf, load_or_build
from pitstop.data.images import ImageSet
from pitstop.errors import UserError

LAYOUT = "Expected: train/<class>/<images> and test/<class>/<images> (val/ or valid/ will do for test/)."
MAX_SKIPPED_SHARE = 0.1
NUM_NAMED = 5
CACHE_VERSION = 1  # raised when the same file would be decoded to other pixels
THREADS = 4
WAVE = 64  # most files in memory at once
WAVE_BYTES = 64_000_000  # what is in memory is decoded as soon as it has this many
SMALL_BYTES = 16_384  # below, Pillow holds the interpreter for so much of the time that threads only hinder


@dataclass(frozen=True)
class Layout:
    """The image files of a source in their order: by split, class, and name."""

    classes: tuple[str, ...]
    splits: dict[str, list[Member]]  # "train", then what serves as the test set
    notes: list[str]


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
        layout = _arrange(source, path)
        for note in layout.notes:
            say(note)

        def build() -> Decoded:
            return _decode_all(source, layout, image_size, path, say)

        if cache is None:
            decoded = build()
        else:
            file = cache / f"{_cache_key(layout, image_size)}.safetensors"
            decoded = load_or_build(file, build, say=say, shelf=shelf)
    train, test = decoded.train, decoded.test
    lacking = [name for name, number in zip(test.classes, _per_class(test), strict=True) if number == 0]
    if lacking:
        say(f"Classes without a test image: {', '.join(lacking[:NUM_NAMED])}{', ...' if lacking[NUM_NAMED:] else ''}.")
    say(f"{path.name}: {len(train):,} train and {len(test):,} test images of {len(train.classes)} classes.")
    return train, test


def _arrange(source: Source, path: Path) -> Layout:
    held_out = [split for split in ("test", "val", "valid") if split in source.folders]
    if "train" not in source.folders or not held_out:
        missing = "train" if "train" not in source.folders else "test"
        found = ", ".join(f"{name}/" for name in source.top[:10]) or "no folder"
        raise UserError(f"{path} has no {missing} folder; found {found}. {LAYOUT}")
    used = ("train", held_out[0])
    splits: dict[str, list[Member]] = {split: [] for split in used}
    others: list[str] = []
    for member in source.members:
        parts = member.name.split("/")
        if parts[0] not in used:
            continue
        if len(parts) > 2 and PurePosixPath(member.name).suffix.lower() in decoding.SUFFIXES:
            splits[parts[0]].append(member)
        else:
            others.append(member.name)
    for members in splits.values():
        members.sort(key=_class_and_name)
    classes = sorted({name.split("/")[1] for name in source.folders if name.startswith("train/")})
    _require_classes(classes, splits, path)
    notes = []
    if held_out != ["test"]:
        unused = "".join(f"; {split}/ is not read" for split in held_out[1:])
        notes.append(f"{held_out[0]}/ serves as the test set{unused}.")
    if others:
        notes.append(f"Ignored {len(others):,} files that are no images in a class folder, such as {min(others)}.")
    if source.refused:
        notes.append(f"Refused {len(source.refused):,}: {'; '.join(sorted(source.refused)[:NUM_NAMED])}.")
    return Layout(tuple(classes), splits, notes)


def _class_and_name(member: Member) -> tuple[str, str]:
    _, class_name, rest = member.name.split("/", 2)
    return class_name, rest


def _require_classes(classes: list[str], splits: dict[str, list[Member]], path: Path) -> None:
    if len(classes) < 2:
        raise UserError(f"{path}: train/ has {len(classes)} class folder(s) {classes}, at least 2 are needed. {LAYOUT}")
    with_images = [{_class_and_name(member)[0] for member in members} for members in splits.values()]
    if empty := sorted(set(classes) - with_images[0]):
        raise UserError(f"{path}: no image in {_listed('train', empty)}. Add images, or delete the folder. {LAYOUT}")
    train, held_out = splits
    if unknown := sorted(with_images[1] - set(classes)):
        raise UserError(
            f"{path}: {_listed(held_out, unknown)} is a class that train/ lacks; train/ has {_listed(train, classes)}. "
            "The folders of a class must have the same name in both."
        )
    if not with_images[1]:
        raise UserError(f"{path}: no image in {held_out}/. {LAYOUT}")


def _listed(split: str, names: list[str]) -> str:
    return ", ".join(f"{split}/{name}" for name in names[:NUM_NAMED]) + (", ..." if names[NUM_NAMED:] else "")


def _cache_key(layout: Layout, image_size: int) -> str:
    listing = [[member.name, member.num_bytes, member.mark] for members in layout.splits.values() for member in members]
    identity = [CACHE_VERSION, image_size, layout.classes, list(layout.splits), listing]
    return files.sha256(files.canonical_json(identity).encode())[:32]


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
        tallies[name] = _tally(good)
        rows_N = torch.tensor([row_of[member.name] for member in good], dtype=torch.int64)
        labels_N = torch.tensor([layout.classes.index(_class_and_name(member)[0]) for member in good])
        sets.append((images_NCHW[rows_N], labels_N))
    unusable = [name for name in layout.classes if name not in tallies["train"]["images"]]
    if unusable or not len(sets[1][0]):
        raise UserError(f"{path}: no usable image in {_listed('train', unusable) or 'the test set'}.")
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
    notes = []
    if skipped:
        named = [f"{name}: {skipped[name]}" for name in sorted(skipped)[:NUM_NAMED]]
        if len(skipped) > MAX_SKIPPED_SHARE * num_files:
            raise UserError(
                f"{path}: {len(skipped):,} of {num_files:,} image files cannot be used, more than a tenth:\n  "
                + "\n  ".join(named)
                + "\nRemove or replace them."
            )
        say(f"Skipped {len(skipped):,} of {num_files:,} image files:")
        for line in named:
            say(f"  {line}")
        notes.append(f"{len(skipped):,} of {num_files:,} image files skipped, such as {min(skipped)}")
    if num_resized:
        say(f"Resized {num_resized:,} images to {size}x{size}.")
        notes.append(f"{num_resized:,} resized to {size}x{size}")
    return notes


def _tally(members: list[Member]) -> dict[str, Any]:
    """Images per class, and the hash of the names (without the split) and sizes in their order."""
    names = [[member.name.split("/", 1)[1], member.num_bytes] for member in members]
    return {
        "images": dict(Counter(_class_and_name(member)[0] for member in members)),
        "sha256": files.sha256(files.canonical_json(names).encode()),
    }


def _per_class(images: ImageSet) -> list[int]:
    return [int(number) for number in np.bincount(images.labels_N.numpy(), minlength=len(images.classes))]
