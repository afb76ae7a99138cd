"""Files that are whole or not there: durable writes, atomic renames, hashes, canonical JSON.

The order (write, fsync the file, rename, fsync the directory) follows "All File Systems Are Not Created Equal"
(Pillai et al., OSDI 2014): without the last step a rename may be lost with the power.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pitstop.errors import UserError

CHECKPOINT = re.compile(r"step-(\d{8,})")  # the name of one, with its step


def boot_id() -> str:
    """Changes with each boot, so that a process id of an earlier one is not taken for a living process."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def canonical_json(value: object) -> str:
    """The one way to write `value` as JSON: sorted keys, no spaces. Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Writes and fsyncs a file that must not exist yet; its directory is the caller's to fsync.

    Raises:
        FileExistsError: `path` exists.
        OSError: the disk is full, gone, or broken.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        rest = memoryview(data)
        while rest:  # one call for all of it, where the disk takes it: the GIL is released meanwhile
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replaces `path` by `data` at once: a reader sees the old file or the new one, never a part.

    `durable=False` spares the two fsyncs: for a heartbeat, which only the living read.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_directory(path.parent)


def plain(value: Any) -> Any:
    """`value` as JSON can have it: NaN and infinities, which it does not know, as the strings "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    write_atomic(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", durable=durable)


def read_json(path: Path, limit_bytes: int = 64 << 20) -> Any:
    """Raises ValueError (with the path) if the file is too large or not JSON, OSError if it cannot be read."""
    size = path.stat().st_size
    if size > limit_bytes:
        raise ValueError(f"{path} has {size} bytes, more than the {limit_bytes} that such a file may have")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A directory that appears whole under the name `final`, or not at all: fill the one that is yielded.

    What was at `final` before is moved aside first and deleted last. Files inside are the caller's to fsync
    (`write_new` does).
    """
    temporary = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        fsync_directory(temporary)
        old = final.with_name(f".trash-{final.name}-{os.getpid()}")
        if final.exists():
            os.rename(final, old)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Deletes a directory so that a crash on the way never leaves half of it under its own name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(directory: Path) -> None:
    """Deletes what a killed write, save or removal left behind; for the one process that writes there."""
    for path in directory.iterdir():
        if path.name.startswith((".tmp-", ".trash-")):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(".") and path.suffix == ".tmp":
            path.unlink(missing_ok=True)


def checkpoint_steps(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of what calls itself a checkpoint there, the newest first. By its number: clocks jump."""
    found = [(match, path) for path in directory.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def set_aside(path: Path) -> Path:
    """Renames what is bad, so that it is kept and no longer used. Returns its new path."""
    number = 1
    while (aside := path.with_name(f"bad-{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)
    return aside


def probe(directory: Path) -> None:
    """Writes, fsyncs and renames a small file there, so that a disk which cannot is known before the first paid step.

    Raises:
        UserError: it cannot.
    """
    try:
        write_atomic(directory / ".probe", b"")
        (directory / ".probe").unlink()
    except OSError as error:
        raise UserError(
            f"{directory} does not take a file, or does not rename or fsync it ({error.strerror}): a checkpoint would "
            "not be safe there. Use a local disk with --runs_dir."
        ) from error


def require_space(directory: Path, needed_bytes: int, purpose: str) -> None:
    """Raises UserError with path, needed and free bytes if the disk of `directory` is too small for `purpose`."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{directory.resolve()} has {free_bytes / 1e6:,.0f} MB free, but {purpose} needs "
            f"{needed_bytes / 1e6:,.0f} MB. Free some space, or point elsewhere (--runs_dir; data: PITSTOP_DATA_DIR)."
        )


class AppendOnly:
    """A file of lines, each written by one system call; a line that a crash cut short is ended first.

    A full disk does not stop who writes: what it does not take is kept, in order, and goes out with the next line that
    it takes, or with `sync`, which raises if it still does not.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._owed = b""
        self._lock = threading.Lock()  # the heartbeat writes too
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._owed = b"\n"

    def write(self, text: str) -> None:
        with self._lock:
            self._owed += text.encode()
            try:
                self._pay()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                    raise

    def _pay(self) -> None:
        while self._owed:  # a disk that is nearly full takes a part, and refuses with an error only at the next call
            self._owed = self._owed[os.write(self._descriptor, self._owed) :]

    def write_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes a JSON object as a line. Returns it as it was written."""
        written: dict[str, Any] = plain(row)
        self.write(json.dumps(written, ensure_ascii=False) + "\n")
        return written

    def flush(self) -> int:
        """Returns the length of the file in bytes. Raises OSError if the disk does not take what was written."""
        with self._lock:
            self._pay()
            return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Raises OSError if the disk does not take, or does not keep, what was written."""
        self.flush()
        os.fsync(self._descriptor)  # without the lock: who writes a row must not wait for the disk


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON objects of a file of lines; what a crash cut short is passed over."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows
