"""Where the bytes of a listed file lie, for many processes that read at any place: a folder, a .zip, a plain .tar."""

import errno
import io
import os
import shutil
import tarfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from pitstop import files
from pitstop.data.archive import DAMAGED, Member, Source, open_source
from pitstop.data.decode import MAX_FILE_BYTES
from pitstop.data.texts import Texts
from pitstop.errors import UserError
from pitstop.locks import exclusive

ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what programs that pack photos use; others are unpacked
NAME_LENGTHS = slice(26, 30)  # in the header of 30 bytes before each member of a .zip: of its name and extra field


class Place(Protocol):
    """Raises OSError, with its reason, for what cannot be read any more."""

    def open(self, row: int) -> BinaryIO: ...


class Tree:
    """Files below a folder."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._paths = Texts(str(member.handle) for member in members)

    def open(self, row: int) -> BinaryIO:
        return open(self._paths[row], "rb")


class Packed:
    """Members of an archive, by their places in it. One descriptor serves all processes: `pread` moves nothing."""

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._spans_N5 = np.array([_span(member) for member in members], np.int64).reshape(-1, 5)

    def open(self, row: int) -> BinaryIO:
        offset, length, method, checksum, num_bytes = self._spans_N5[row].tolist()
        if num_bytes > MAX_FILE_BYTES:  # before it is in memory
            raise OSError(errno.EFBIG, "too large a file")
        if method < 0:
            return io.BytesIO(self._read(offset, length))
        header = self._read(offset, 30)
        offset += 30 + sum(int.from_bytes(header[NAME_LENGTHS][i : i + 2], "little") for i in (0, 2))
        data = self._read(offset, length)
        try:
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, num_bytes + 1)  # a bomb holds more
        except zlib.error as error:
            raise OSError(errno.EIO, f"damaged in the archive ({error})") from error
        if zlib.crc32(data) != checksum:
            raise OSError(errno.EIO, "damaged in the archive (its checksum is another)")
        return io.BytesIO(data)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise OSError(errno.EIO, "the archive ends before it")
        return data


def _span(member: Member) -> tuple[int, int, int, int, int]:
    """Offset, bytes there, method of compression (-1: a .tar has none), CRC-32, bytes of the file."""
    handle = member.handle
    if isinstance(handle, tarfile.TarInfo):
        return handle.offset_data, handle.size, -1, 0, handle.size
    return handle.header_offset, handle.compress_size, handle.compress_type, handle.CRC, handle.file_size


def place_of(path: Path, members: Sequence[Member]) -> Place:
    return Tree(members) if path.is_dir() else Packed(path, members)


def has_random_access(path: Path) -> bool:
    """Can members be read where they lie? Raises UserError if the archive cannot be opened."""
    if path.is_dir():
        return True
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return all(info.compress_type in ZIP_METHODS for info in archive.infolist())
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:  # compressed
        return False
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}): check its rights, or copy it here again.") from error


def unpacked(path: Path, folder: Path, *, may_write: bool, say: Callable[[str], None]) -> Path | None:
    """The folder, below `folder`, with what the archive `path` holds: unpacked once, by one process, whole or not at
    all, also when killed on the way. None where it is not there and nothing may be written.

    Raises:
        UserError: no room, no right to write, or a damaged archive.
    """
    found = path.stat()
    identity = [str(path.resolve()), found.st_size, found.st_mtime_ns]
    final = folder / f"{path.name.split('.')[0]}-{files.sha256(files.canonical_json(identity).encode())[:16]}"
    if final.is_dir() or not may_write:
        return final if final.is_dir() else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f"{final.name}.lock", say=say):
            if not final.is_dir():  # made by the process that was waited for
                for left_by_killed in folder.glob(f".t*-{final.name}-*"):  # the lock is ours: nobody else is at it
                    shutil.rmtree(left_by_killed, ignore_errors=True)
                with open_source(path, bare=True) as source:
                    _unpack(source, path, final, say)
    except OSError as error:
        raise UserError(
            f"{path} has no random access and must be unpacked first, but {final} cannot be written "
            f"({error.strerror or error}). Unpack it yourself and give --data the folder, or set PITSTOP_DATA_DIR."
        ) from error
    return final


def _unpack(source: Source, path: Path, final: Path, say: Callable[[str], None]) -> None:
    """By the checked names of its members (`archive._add`), which cannot lead out of the folder; links are refused."""
    needed_bytes = sum(member.num_bytes + 4096 for member in source.members)
    files.require_space(final.parent, needed_bytes, f"unpacking {path.name}")
    say(f"{path.name} has no random access: unpacking {len(source.members):,} files into {final}, once.")
    with files.new_directory(final) as new:
        for name in sorted(source.folders):
            (new / name).mkdir(parents=True, exist_ok=True)
        for member, data in source.read(source.members):
            if isinstance(data, str):
                raise UserError(f"{path}: {member.name} is {data}. Copy the archive here again.")
            (new / member.name).write_bytes(data)
        os.sync()  # one for all: an fsync of each of a million small files takes hours
