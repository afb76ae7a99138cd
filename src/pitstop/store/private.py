"""Files as they are now, out of the reach of those who prune and replace them while they are being uploaded."""

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

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


def sha256_of(path: Path, size: int) -> str:
    """Of the first `size` bytes. Raises StoreError if there are fewer."""
    digest = hashlib.sha256()
    left = size
    if size:
        with open(path, "rb") as file:
            while left and (part := file.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
    if left:
        raise StoreError(f"{path} has less than the {size} bytes that the checkpoint covers")
    return digest.hexdigest()
