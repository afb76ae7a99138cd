"""What a folder or an archive holds, and its bytes. Archives are read in memory; nothing is ever extracted to disk."""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pitstop.errors import UserError

SPLITS = ("train", "test", "val", "valid")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}  # and whatever begins with a dot
WINDOWS = (0, 10, 11)  # "host system" of an entry in a .zip: FAT, NTFS, VFAT
MAX_DEPTH = 16  # of single folders around train/; a link to its own parent is deeper

# What zipfile and tarfile raise for bytes that are damaged, cut off, or packed by a method they lack.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Member:
    """A file: its name below the folder that holds train/, with "/" between; `mark` changes when its content does."""

    name: str
    num_bytes: int
    mark: str
    handle: Any  # what its source reads it by


@dataclass
class Source:
    """Everything visible below the splits of a folder or archive, in no particular order.

    `read` yields each member with its bytes, or with the reason why there are none, in the order that is fast.
    """

    read: Callable[[Iterable[Member]], Iterator[tuple[Member, bytes | str]]]
    members: list[Member] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)  # also the empty ones, where the archive names them
    refused: list[str] = field(default_factory=list)  # name and reason
    top: list[str] = field(default_factory=list)  # folders beside train/, for messages


@contextmanager
def open_source(path: Path, *, bare: bool = False) -> Iterator[Source]:
    """What `path` holds; with `bare`, class folders that stand there without any split around them are its train/.

    Raises:
        UserError: `path` is neither a folder nor an archive that can be read.
    """
    with ExitStack() as stack:
        if not path.is_dir() and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise UserError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}).")
        try:
            if path.is_dir():
                source = _open_tree(path, bare)
            elif path.name.lower().endswith(".zip"):
                source = _open_zip(stack.enter_context(zipfile.ZipFile(path)), path, bare)
            else:
                tar = stack.enter_context(tarfile.open(path, encoding="utf-8", errors="surrogateescape"))
                source = _open_tar(tar, path, bare)
        except DAMAGED as error:
            raise UserError(
                f"{path} cannot be read ({error or type(error).__name__}): check its rights, or copy it here again."
            ) from error
        yield source


def _open_tree(path: Path, bare: bool) -> Source:
    def visible_folders(inner: str) -> list[str]:
        return [entry.name for entry in os.scandir(path / inner) if entry.is_dir() and not is_ignored(entry.name)]

    def read(members: Iterable[Member]) -> Iterator[tuple[Member, bytes | str]]:
        for member in members:
            try:
                yield member, Path(member.handle).read_bytes()
            except OSError as error:
                yield member, error.strerror or "cannot be read"

    root = _find_root(visible_folders)
    source = Source(read, top=sorted(visible_folders(root)))
    for split in set(source.top) & set(SPLITS):
        source.folders.add(split)
        _walk(path / root / split, split, frozenset(), source)
    if bare and source.top and not source.folders:
        source.folders.add("train")
        _walk(path / root, "train", frozenset(), source)
    return source


def _walk(folder: Path, name: str, above: frozenset[tuple[int, int]], source: Source) -> None:
    """Follows links, but none that leads back to a folder `above` (by device and inode)."""
    here = folder.stat()
    above |= {(here.st_dev, here.st_ino)}
    for entry in os.scandir(folder):
        if is_ignored(entry.name):
            continue
        entry_name = f"{name}/{_readable(os.fsencode(entry.name))}"
        try:
            found = entry.stat()
        except OSError as error:
            source.refused.append(f"{entry_name}: {error.strerror}")
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in above:
                source.refused.append(f"{entry_name}: a link to a folder around it")
                continue
            source.folders.add(entry_name)
            _walk(Path(entry.path), entry_name, above, source)
        elif stat.S_ISREG(found.st_mode):
            source.members.append(Member(entry_name, found.st_size, str(found.st_mtime_ns), entry.path))
        else:
            source.refused.append(f"{entry_name}: no regular file")


def _open_zip(archive: zipfile.ZipFile, path: Path, bare: bool) -> Source:
    def read(members: Iterable[Member]) -> Iterator[tuple[Member, bytes | str]]:
        for member in sorted(members, key=lambda member: int(member.handle.header_offset)):
            try:
                yield member, archive.read(member.handle)
            except DAMAGED as error:
                yield member, f"damaged in the archive ({error})"

    source = Source(read)
    for name, info in zip_names(archive):
        if info.flag_bits & 1:
            raise UserError(f"{path} is encrypted ({info.filename}): give one without a password.")
        # The host system of the entry says whether the upper half holds a Unix mode; zero means a plain file.
        mode = info.external_attr >> 16
        regular = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
        _add(source, Member(name, info.file_size, f"{info.CRC:08x}", info), name.endswith("/"), regular)
    return _below_root(source, bare)


def zip_names(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """Without the UTF-8 flag zipfile takes the bytes for cp437; programs write UTF-8 or, in China, GBK."""
    infos, raw = archive.infolist(), dict[int, bytes]()
    for place, info in enumerate(infos):
        if not info.flag_bits & 0x800:
            with suppress(UnicodeEncodeError):  # named by the Unicode extra field: right already
                raw[place] = info.filename.encode("cp437")
    from_windows = any(infos[place].create_system in WINDOWS for place in raw)
    readable = dict(zip(raw, _all_readable([*raw.values()], from_windows=from_windows), strict=True))
    names = (readable.get(place, info.filename) for place, info in enumerate(infos))
    return [(name.replace("\\", "/"), info) for name, info in zip(names, infos, strict=True)]  # some for Windows


def _open_tar(archive: tarfile.TarFile, path: Path, bare: bool) -> Source:
    def read(members: Iterable[Member]) -> Iterator[tuple[Member, bytes | str]]:
        # In the order of the archive: a compressed one is unpacked again for each step back.
        for member in sorted(members, key=lambda member: int(member.handle.offset)):
            try:
                file = archive.extractfile(member.handle)
                assert file is not None, member.name
                yield member, file.read()
            except DAMAGED as error:
                yield member, f"damaged in the archive ({error})"

    source = Source(read)
    found = path.stat()
    infos = archive.getmembers()
    names = _all_readable([info.name.encode("utf-8", "surrogateescape") for info in infos])
    for name, info in zip(names, infos, strict=True):
        member = Member(name, info.size, f"{found.st_size}-{found.st_mtime_ns}", info)
        _add(source, member, info.isdir(), info.isreg() or info.isdir())
    return _below_root(source, bare)


def _add(source: Source, member: Member, is_folder: bool, is_regular: bool) -> None:
    """Puts a member of an archive where it belongs, by a name that has no "." and cannot lead out."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or re.match(r"[A-Za-z]:", member.name) or ".." in parts:
        source.refused.append(f"{member.name}: its name leads out of the archive")
    elif any(is_ignored(part) for part in parts):
        pass
    elif not is_regular:
        source.refused.append(f"{member.name}: a link or a device")
    else:
        own = len(parts) if is_folder else len(parts) - 1
        source.folders.update("/".join(parts[:depth]) for depth in range(1, own + 1))
        if not is_folder:
            source.members.append(replace(member, name="/".join(parts)))


def _below_root(source: Source, bare: bool) -> Source:
    """Only what is below the splits, with names that begin there; of members of one name the last, as tar does."""

    def folders_at(inner: str) -> list[str]:
        return [
            name[len(inner) :] for name in source.folders if name.startswith(inner) and "/" not in name[len(inner) :]
        ]

    root = _find_root(folders_at)
    source.top = sorted(folders_at(root))
    within: tuple[str, ...] = tuple(f"{root}{split}/" for split in SPLITS)
    around = ""
    if bare and source.top and not set(source.top) & set(SPLITS):
        within, around = (root,), "train/"
    folders = {name[len(root) :] for name in source.folders if f"{name}/".startswith(within)} - {""}
    source.folders = {around + name for name in folders} | ({"train"} if around else set())
    named = {around + member.name[len(root) :]: member for member in source.members if member.name.startswith(within)}
    source.members = [replace(member, name=name) for name, member in named.items()]
    return source


def _find_root(folders_at: Callable[[str], list[str]]) -> str:
    """The folder, as "a/b/" or "", that holds the splits: found through folders that are alone at their level."""
    root = ""
    for _ in range(MAX_DEPTH):
        found = folders_at(root)
        if len(found) != 1 or found[0] in SPLITS:
            break
        root += f"{found[0]}/"
    return root


def is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _all_readable(names: list[bytes], *, from_windows: bool = False) -> list[str]:
    """The names in an archive have one encoding. A short one alone may tell nothing: 猫 in GBK is è in UTF-8. Where all
    are of that kind, which has no byte from E0 on, it is GBK if a program for Windows wrote them."""
    joined = b"\0".join(names)
    encodings = ["utf-8", "gbk"]
    if from_windows and max(joined, default=0) < 0xE0:
        encodings.reverse()
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            return joined.decode(encoding).split("\0") if names else []
    return [_readable(name) for name in names]


def _readable(name: bytes) -> str:
    for encoding in ("utf-8", "gbk"):
        try:
            return name.decode(encoding)
        except UnicodeDecodeError:
            continue
    return name.decode("utf-8", "backslashreplace")
