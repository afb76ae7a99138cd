"""The same image in two splits makes the figures too good: found by content, before the first step."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pitstop.data.photos import PhotoSet
from pitstop.data.scan import kept
from pitstop.files import sha256


def tell_doubles(
    sets: Mapping[str, PhotoSet], sizes: Sequence[int], file: Path, *, may_write: bool, say: Callable[[str], None]
) -> None:
    """Says the lines of `doubles`, which are kept in `file`, and not looked for again."""

    def lines_of(known: Any) -> list[str]:
        return [str(line) for line in known["lines"]]

    for line in kept(file, lambda: {"lines": doubles(sets, sizes)}, lines_of, may_write=may_write, say=say):
        say(f"advice: {line}")


def doubles(sets: Mapping[str, PhotoSet], sizes: Sequence[int]) -> list[str]:
    """A line for each two splits that have images in common, byte for byte. Only files of one size are read.

    Args:
        sizes: in bytes, of each row of the sets' pictures.
    """
    rows = {split: each.rows_N.tolist() for split, each in sets.items()}
    splits_of: dict[int, set[str]] = defaultdict(set)
    for split, own in rows.items():
        for row in own:
            splits_of[sizes[row]].add(split)
    digests = {
        split: [_digest(sets[split], row) for row in own if len(splits_of[sizes[row]]) > 1]
        for split, own in rows.items()
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


def _digest(images: PhotoSet, row: int) -> str:
    """Nothing, if it cannot be read: others say so."""
    try:
        with images.pictures.place.open(row) as file:
            return sha256(file.read())
    except OSError:
        return ""
