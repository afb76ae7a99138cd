"""Notes every call that changes something below a directory, in this process: what `power` plays back."""

import builtins
import io
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pitstop import files

Directory = dict[str, int]  # name -> number of the file or directory


@dataclass(frozen=True)
class Call:
    """`kind`: name (a directory's entries), data (a file's bytes), fsync, or note (what the program holds to be so).

    `node` is the directory or file that changes. A name call puts `entry` under `new`, and takes it from `old`.
    """

    kind: str
    node: int = 0
    entry: int = 0
    directory: bool = False  # is the entry one?
    old: str = ""
    new: str = ""
    offset: int = 0
    data: bytes | None = None  # None: cut at the offset
    note: Any = None


def change_names(entries: Directory, call: Call) -> None:
    if call.old and entries.get(call.old) == call.entry:
        del entries[call.old]
    if call.new:
        entries[call.new] = call.entry


def change_bytes(content: bytes, call: Call) -> bytes:
    padded = content.ljust(call.offset, b"\x00")
    if call.data is None:
        return padded[: call.offset]
    return padded[: call.offset] + call.data + padded[call.offset + len(call.data) :]


@dataclass
class Nodes:
    """All files and directories; number 0 is the root."""

    directories: dict[int, Directory] = field(default_factory=lambda: {0: {}})
    contents: dict[int, bytes] = field(default_factory=dict)

    def tree(self, node: int = 0, path: str = "") -> dict[str, bytes | None]:
        """Path -> content; None for a directory."""
        found: dict[str, bytes | None] = {}
        for name, entry in self.directories[node].items():
            if entry in self.directories:
                found[path + name] = None
                found |= self.tree(entry, f"{path}{name}/")
            else:
                found[path + name] = self.contents[entry]
        return found

    def add(self, entry: int, directory: bool) -> None:
        if directory:
            self.directories.setdefault(entry, {})
        else:
            self.contents.setdefault(entry, b"")

    def apply(self, call: Call) -> None:
        if call.kind == "name":
            change_names(self.directories[call.node], call)
        elif call.kind == "data":
            self.contents[call.node] = change_bytes(self.contents[call.node], call)


def read_tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}


def write_tree(root: Path, tree: dict[str, bytes | None]) -> None:
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir(parents=True)
        else:
            (root / name).write_bytes(content)


class Recorder:
    """Takes the place of what `os` has for changing files, below one directory; everything is done for real, too."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.live = root, Nodes()
        self.calls: list[Call] = []
        self._open: dict[int, tuple[int, int]] = {}  # descriptor -> (node, flags)
        self._positions: dict[int, int] = {}
        self._numbers = iter(range(1, 1 << 30))
        self._lock = threading.RLock()
        names = [name for name in dir(self) if not name.startswith("_") and hasattr(os, name)]
        self._real = {name: getattr(os, name) for name in names}
        for name in names:
            patch.setattr(os, name, getattr(self, name))
        patch.setattr(files, "open", self._builtin_open, raising=False)

    def note(self, what: Any) -> None:
        with self._lock:
            self.calls.append(Call("note", note=what))

    def close_all(self) -> None:
        for descriptor in list(self._open):
            self.close(descriptor)

    def _do(self, **fields: Any) -> None:
        call = Call(**fields)
        self.calls.append(call)
        self.live.apply(call)

    def _place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """(directory, name), or None if it is not below the root."""
        if dir_fd is not None:
            return (self._open[dir_fd][0], os.fspath(path)) if dir_fd in self._open else None
        path = Path(os.path.abspath(path))
        if self.root not in path.parents:
            return None
        node = 0
        for part in path.relative_to(self.root).parts[:-1]:
            node = self.live.directories[node][part]
        return node, path.name

    def _new(self, node: int, name: str, directory: bool) -> int:
        entry = next(self._numbers)
        self.live.add(entry, directory)
        self._do(kind="name", node=node, entry=entry, directory=directory, new=name)
        return entry

    def _move(self, node: int, name: str, new: str) -> None:
        entry = self.live.directories[node][name]
        directory = entry in self.live.directories
        self._do(kind="name", node=node, entry=entry, directory=directory, old=name, new=new)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            descriptor = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            if os.path.abspath(path) == str(self.root):
                self._open[descriptor] = 0, flags
            elif place := self._place(path, dir_fd):
                node, name = place
                entry = self.live.directories[node].get(name) or self._new(node, name, directory=False)
                if flags & os.O_TRUNC and self.live.contents[entry]:
                    self._do(kind="data", node=entry)
                self._open[descriptor], self._positions[descriptor] = (entry, flags), 0
            return descriptor

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            self._real["close"](descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        with self._lock:
            count = self._real["write"](descriptor, data)
            if descriptor in self._open:
                node, flags = self._open[descriptor]
                offset = len(self.live.contents[node]) if flags & os.O_APPEND else self._positions[descriptor]
                self._do(kind="data", node=node, offset=offset, data=bytes(data[:count]))
                self._positions[descriptor] = offset + count
            return count

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._lock:
            count = self._real["pwrite"](descriptor, data, offset)
            if descriptor in self._open:
                self._do(kind="data", node=self._open[descriptor][0], offset=offset, data=bytes(data[:count]))
            return count

    def ftruncate(self, descriptor: int, length: int) -> None:
        with self._lock:
            self._real["ftruncate"](descriptor, length)
            if descriptor in self._open:
                self._do(kind="data", node=self._open[descriptor][0], offset=length)

    def fsync(self, descriptor: int) -> None:
        with self._lock:
            self._real["fsync"](descriptor)
            if descriptor in self._open:
                self._do(kind="fsync", node=self._open[descriptor][0])

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if place := self._place(path, dir_fd):
                self._new(*place, directory=True)

    def rename(self, old: Any, new: Any) -> None:
        with self._lock:
            self._real["rename"](old, new)
            if place := self._place(old):
                (node, name), (target, new_name) = place, self._place(new) or (-1, "")
                assert node == target, "it moves from one directory to another"
                self._move(node, name, new_name)

    replace = rename

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def _remove(self, function: str, path: Any, dir_fd: int | None) -> None:
        with self._lock:
            self._real[function](path, dir_fd=dir_fd)
            if place := self._place(path, dir_fd):
                self._move(*place, "")

    def _builtin_open(self, path: Any, mode: str = "r") -> Any:
        """Python's own open for writing, through the functions above and without a buffer."""
        if mode != "wb":
            return builtins.open(path, mode)
        recorder = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                return recorder.write(self.fileno(), data)

            def close(self) -> None:
                if not self.closed:
                    recorder._open.pop(self.fileno(), None)
                super().close()

        return Raw(path, "wb", opener=lambda path, flags: self.open(path, flags, 0o666))
