"""Files as they are now, out of the reach of those who prune and replace them while they are being uploaded."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pitstop.store.trouble import StoreError

PRIVATE = ".upload-"  # how the names of such directories begin
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def linked(folder: Path, into: Path) -> Path:
    """A new directory in `into` with hard links to the files of `folder`; copies where the disk has no links."""
    return _gathered(folder, os.listdir(folder), into, _link_or_copy)


def _gathered(folder: Path, names: Iterable[str], into: Path, put: Callable[[Path, Path], object]) -> Path:
    private = Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{folder.name}-", dir=into))
    try:
        for name in names:
            put(folder / name, private / name)
    except OSError:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return private


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)


class Waiting:
    """A checkpoint that waits for its upload: held at once, by hard links. Where the disk has none, only `hold` copies
    it, in the thread that uploads; what was pruned until then is not whole any more, and passed over."""

    def __init__(self, folder: Path, step: int) -> None:
        """The checkpoint of `step` in `folder`, whole. Raises OSError."""
        self.step = step
        self._folder, self._path = folder, folder / f"step-{step:08d}"
        self._names = os.listdir(self._path)  # all of them: later, some may be gone
        self._private: Path | None = None
        try:
            self._private = _gathered(self._path, self._names, folder, os.link)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise

    def hold(self) -> Path | None:
        """A directory with its files that nobody else touches; None if it was pruned before. Raises OSError."""
        try:
            self._private = self._private or _gathered(self._path, self._names, self._folder, shutil.copyfile)
        except FileNotFoundError:
            return None
        return self._private

    def drop(self) -> None:
        if self._private:
            shutil.rmtree(self._private, ignore_errors=True)


def state_of(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file does."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def described(path: Path, size: int | None = None) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file, or of its first `size` bytes. Raises StoreError if there are fewer."""
    digest = hashlib.sha256()
    if size == 0:
        return {"bytes": 0, "sha256": digest.hexdigest()}
    with open(path, "rb") as file:
        size = left = os.fstat(file.fileno()).st_size if size is None else size
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    if left:
        raise StoreError(f"{path} has less than the {size} bytes that the checkpoint covers")
    return {"bytes": size, "sha256": digest.hexdigest()}
