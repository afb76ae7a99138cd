"""The images that a person names: files, folders, archives and patterns, each opened when its turn comes."""

import glob
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pitstop.data import decode as decoding
from pitstop.data.archive import DAMAGED, is_ignored, zip_names
from pitstop.errors import UserError


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file: its name as it is shown, and what reads it (bytes, or the reason why there are none)."""

    name: str
    read: Callable[[], bytes | str]


def find(words: Sequence[str], stack: ExitStack) -> list[Picture]:
    """In the order of `words`; what lies in a folder or an archive is sorted by name. Archives stay open in `stack`.

    Raises:
        UserError: there is nothing at a path, or no image in it.
    """
    pictures = []
    for word in words:
        found = [picture for path in _expanded(word) for picture in _at(path, stack)]
        if not found:
            suffixes = " ".join(sorted(decoding.SUFFIXES))
            raise UserError(f"{shown(word)} holds no image: a file with one of these endings was expected: {suffixes}")
        pictures += found
    return pictures


def shown(name: str) -> str:
    """A path as text that any terminal takes: bytes that are no UTF-8, and control characters, are spelled out."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _expanded(word: str) -> list[str]:
    path = os.path.expanduser(word)
    if os.path.lexists(path):
        return [path]
    if found := sorted(glob.glob(path, recursive=True)):
        return found
    wanted = "nothing matches this pattern" if glob.has_magic(path) else "there is no such file or folder"
    raise UserError(f"{shown(word)}: {wanted} (looked from {os.getcwd()}).")


def _at(path: str, stack: ExitStack) -> Iterator[Picture]:
    if os.path.isdir(path):
        for file in sorted(_walk(path, frozenset()), key=lambda file: Path(file).parts):
            yield Picture(shown(file), _File(file))
    elif path.lower().endswith(".zip"):
        yield from _members(path, stack)
    else:
        yield Picture(shown(path), _File(path))


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Image files at any depth, by their endings. Follows links, but none that leads back to a folder `above`."""
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in os.scandir(folder):
        if is_ignored(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, above | {(here.st_dev, here.st_ino)})
        elif os.path.splitext(entry.name)[1].lower() in decoding.SUFFIXES:
            yield entry.path


@dataclass(frozen=True, slots=True)
class _File:
    path: str

    def __call__(self) -> bytes | str:
        try:
            about = os.stat(self.path)
            if not stat.S_ISREG(about.st_mode):
                return "no regular file"
            return too_large(about.st_size) or Path(self.path).read_bytes()
        except OSError as error:
            return error.strerror or "cannot be read"


def _members(path: str, stack: ExitStack) -> Iterator[Picture]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except DAMAGED as error:
        raise UserError(
            f"{shown(path)} cannot be read ({error or type(error).__name__}): copy it here again."
        ) from error
    named = sorted((name, info.header_offset, info) for name, info in zip_names(archive) if not name.endswith("/"))
    for name, _, info in named:
        ignored = any(is_ignored(part) for part in name.split("/"))
        if not ignored and os.path.splitext(name)[1].lower() in decoding.SUFFIXES:
            yield Picture(shown(f"{path}/{name}"), _Member(archive, info))


@dataclass(frozen=True, slots=True)
class _Member:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __call__(self) -> bytes | str:
        if self.info.flag_bits & 1:
            return "encrypted: give an archive without a password"
        try:
            return too_large(self.info.file_size) or self.archive.read(self.info)
        except DAMAGED as error:
            return f"damaged in the archive ({error})"


def too_large(num_bytes: int) -> str:
    limit = decoding.MAX_FILE_BYTES
    return f"{num_bytes / 1e6:,.1f} MB, at most {limit / 1e6:.0f} MB were expected" if num_bytes > limit else ""
