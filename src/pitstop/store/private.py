"""Files as they are now, out of the reach of those who prune and replace them while they are being uploaded."""

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pitstop.store.trouble import StoreError

PRIVATE = ".upload-"  # how the names of such directories begin
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def linked(folder: Path, into: Path) -> Path:
    """A new directory in `into` with hard links to the files of `folder`; copies where the disk has no links."""
    private = Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{folder.name}-", dir=into))
    try:
        for path in folder.iterdir():
            try:
                os.link(path, private / path.name)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                shutil.copyfile(path, private / path.name)
    except OSError:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return private


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
