"""A first, fast look at all image files, so that a broken one is known before the first paid step: --check_data."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import PIL

from pitstop import files
from pitstop.data.decode import examine
from pitstop.data.photos import Pictures
from pitstop.data.workers import bring

VERSION = 1  # raised when other files would be found
PIECE = 64
FEW = 500  # files that are looked at sooner than a worker has started
SAY_SECONDS = 10.0


def broken_files(
    pictures: Pictures, key: str, folder: Path, *, workers: int, may_write: bool, say: Callable[[str], None]
) -> dict[int, str]:
    """Rows of files that are no images or end too early, and why: by their headers and ends, which costs little.

    `key` says what the files are: what was found is kept below `folder` under it, and not looked for again.
    """
    file = folder / f"check-{key}-{VERSION}-{PIL.__version__}.json"
    if (known := _read(file, len(pictures.names))) is not None:
        return known
    number = len(pictures.names)
    found: dict[int, str] = {}
    pieces = (range(first, min(first + PIECE, number)) for first in range(0, number, PIECE))

    def look(rows: range) -> tuple[int, list[tuple[int, str]]]:
        return len(rows), [(row, reason) for row in rows if (reason := _why_broken(pictures, row))]

    begun = told = time.monotonic()
    done = 0
    for length, broken in bring(look, pieces, 0 if number <= FEW else workers):
        found.update(broken)
        done += length
        if (now := time.monotonic()) - told >= SAY_SECONDS:
            say(f"Checked {done:,} of {number:,} files, {(now - begun) / done * (number - done):.0f} s left.")
            told = now
    if may_write:
        _write(file, found, number, say)
    return found


def _why_broken(pictures: Pictures, row: int) -> str | None:
    try:
        with pictures.place.open(row) as file:
            return examine(file, pictures.shorter)
    except OSError as error:
        return error.strerror or str(error)


def _read(file: Path, number: int) -> dict[int, str] | None:
    """None where it is not there, or not whole: it is soon made again."""
    try:
        kept = files.read_json(file)
        found = {int(row): str(reason) for row, reason in kept["broken"].items()}
        return found if kept["files"] == number and all(0 <= row < number for row in found) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(file: Path, found: dict[int, str], number: int, say: Callable[[str], None]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(file, json.dumps({"files": number, "broken": found}, ensure_ascii=False))
    except OSError as error:
        say(f"What the check of the data found is not kept: {file.parent} cannot be written ({error.strerror}).")
