"""The same image in two splits makes the figures too good: found by content, before the first step."""

import os
from collections import defaultdict
from collections.abc import Mapping

from pitstop.data.photos import PhotoSet
from pitstop.files import sha256


def doubles(sets: Mapping[str, PhotoSet]) -> list[str]:
    """A line for each two splits that have images in common, byte for byte. Only files of one size are read."""
    rows = {split: each.rows_N.tolist() for split, each in sets.items()}
    sizes = {split: [_size(sets[split], row) for row in rows[split]] for split in sets}
    splits_of: dict[int, set[str]] = defaultdict(set)
    for split, found in sizes.items():
        for size in found:
            splits_of[size].add(split)
    digests = {
        split: [
            _digest(sets[split], row)
            for row, size in zip(rows[split], sizes[split], strict=True)
            if size and len(splits_of[size]) > 1
        ]
        for split in sets
    }
    lines, splits = [], list(sets)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            if common := set(digests[one]) & set(digests[other]) - {""}:
                share = sum(digest in common for digest in digests[other]) / len(sets[other])
                lines.append(
                    f"{len(common):,} images are in {one} and in {other} alike ({100 * share:.1f} % of {other}): what "
                    f"is measured on {other} is too good by as much; delete them from one of the two"
                )
    return lines


def _size(images: PhotoSet, row: int) -> int:
    """In bytes; 0 if it cannot be read: others say so."""
    try:
        with images.pictures.place.open(row) as file:
            return file.seek(0, os.SEEK_END)
    except OSError:
        return 0


def _digest(images: PhotoSet, row: int) -> str:
    try:
        with images.pictures.place.open(row) as file:
            return sha256(file.read())
    except OSError:
        return ""
