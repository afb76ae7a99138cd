"""The images that a person names: files, folders, archives and patterns, each opened when its turn comes."""

import glob
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pitstop.data import decode as decoding
from pitstop.data.archive import ARCHIVE_SUFFIXES, DAMAGED, is_ignored, zip_names
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
    elif path.lower().endswith(ARCHIVE_SUFFIXES):
        yield from _unpacked(path, stack)
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
        elif _is_image(entry.name):
            yield entry.path


def _is_image(name: str) -> bool:
    """By its name, which may have folders in it."""
    ignored = any(is_ignored(part) for part in name.split("/") if part != ".")
    return not ignored and os.path.splitext(name)[1].lower() in decoding.SUFFIXES


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
        raise _damaged(path, error) from error
    named = sorted((name, info.header_offset, info) for name, info in zip_names(archive) if not name.endswith("/"))
    for name, _, info in named:
        if _is_image(name):
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


def _unpacked(path: str, stack: ExitStack) -> Iterator[Picture]:
    """Images of a .tar, as files in a folder for the time being: a compressed one is slow to read in any other order
    than its own. The names of the files are ours, so that none leads out of the folder."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="pitstop-predict-")))
    read: dict[str, Callable[[], bytes | str]] = {}
    try:
        with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
            for number, info in enumerate(archive):
                if not info.isreg() or not _is_image(info.name):
                    continue
                read[info.name.removeprefix("./")] = partial(too_large, info.size)
                if not too_large(info.size) and (data := archive.extractfile(info)):
                    (folder / str(number)).write_bytes(data.read())
                    read[info.name.removeprefix("./")] = _File(str(folder / str(number)))
    except DAMAGED as error:
        raise _damaged(path, error) from error
    for name in sorted(read):
        yield Picture(shown(f"{path}/{name}"), read[name])


def _damaged(path: str, error: BaseException) -> UserError:
    return UserError(f"{shown(path)} cannot be read ({error or type(error).__name__}): copy it here again.")


def too_large(num_bytes: int) -> str:
    limit = decoding.MAX_FILE_BYTES
    return f"{num_bytes / 1e6:,.1f} MB, at most {limit / 1e6:.0f} MB were expected" if num_bytes > limit else ""
