"""A first, fast look at all image files, so that a broken one is known before the first paid step: --check_data."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import PIL

from pitstop import files
from pitstop.data.decode import examine
from pitstop.data.photos import Pictures
from pitstop.data.workers import bring
from pitstop.locks import exclusive

T = TypeVar("T")

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
    number = len(pictures.names)

    def look(rows: range) -> tuple[int, list[tuple[int, str]]]:
        return len(rows), [(row, reason) for row in rows if (reason := _why_broken(pictures, row))]

    def find() -> dict[str, Any]:
        found: dict[int, str] = {}
        pieces = (range(first, min(first + PIECE, number)) for first in range(0, number, PIECE))
        begun = told = time.monotonic()
        done = 0
        for length, broken in bring(look, pieces, 0 if number <= FEW else workers):
            found.update(broken)
            done += length
            if (now := time.monotonic()) - told >= SAY_SECONDS:
                say(f"Checked {done:,} of {number:,} files, {(now - begun) / done * (number - done):.0f} s left.")
                told = now
        return {"files": number, "broken": found}

    def broken_of(known: Any) -> dict[int, str]:
        found = {int(row): str(reason) for row, reason in known["broken"].items()}
        if known["files"] != number or not all(0 <= row < number for row in found):
            raise ValueError("it is of other files")
        return found

    file = folder / f"check-{key}-{VERSION}-{PIL.__version__}.json"
    return kept(file, find, broken_of, may_write=may_write, say=say)


def _why_broken(pictures: Pictures, row: int) -> str | None:
    try:
        with pictures.place.open(row) as file:
            return examine(file, pictures.shorter)
    except OSError as error:
        return error.strerror or str(error)


def kept(
    file: Path, find: Callable[[], Any], use: Callable[[Any], T], *, may_write: bool, say: Callable[[str], None]
) -> T:
    """`use` of the JSON value in `file`; else of what `find` returns, which is then kept there, if disk and rights
    allow.

    One process looks, the others wait. `use` raises ValueError, KeyError, TypeError or AttributeError for another value
    than `find` returns: it is then found again.
    """
    known = _read(file, use)
    if known is not None:
        return known
    if not may_write:
        return use(find())
    lock = file.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        say(f"What the check of the data found is not kept: {file.parent} cannot be written ({error.strerror}).")
        return use(find())
    with exclusive(lock, say=say):
        known = _read(file, use)  # by the process that was waited for
        if known is None:
            found = find()
            known = use(found)
            _write(file, found, say)
    return known


def _read(file: Path, use: Callable[[Any], T]) -> T | None:
    """None where it is not there, or not whole: it is soon made again."""
    try:
        return use(files.read_json(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(file: Path, found: Any, say: Callable[[str], None]) -> None:
    try:
        files.write_atomic(file, json.dumps(found, ensure_ascii=False))
    except OSError as error:
        say(f"What the check of the data found is not kept: {file.parent} cannot be written ({error.strerror}).")
