"""Decoded images for the next machine: `<store>/caches/<file>`, shared by all runs."""

import threading
from collections.abc import Callable
from pathlib import Path

from pitstop.errors import UserError
from pitstop.files import fsync_directory
from pitstop.store.bucket import Bucket
from pitstop.store.trouble import StoreError

FOLDER = "caches"
TRIES_SECONDS = 5.0  # by now the run's own corner has answered
LIMIT_BYTES = 512 << 20  # larger ones are decoded anew sooner than they are uploaded


class Shelf:
    """Takes and gives files whose name says what is in them, and which their reader verifies. A store that does not
    work costs a line and nothing else."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self._url, self._say = url, say

    def fetch(self, file: Path) -> bool:
        """Brings the file of this name, if it is there."""
        partial = file.with_name(f".tmp-{file.name}")
        try:
            bucket = Bucket.open(self._url, FOLDER, tries_seconds=TRIES_SECONDS)
            size = bucket.names("").get(file.name, LIMIT_BYTES + 1)
            if size > LIMIT_BYTES:
                return False
            partial.unlink(missing_ok=True)
            bucket.download(file.name, partial, size)
            partial.replace(file)
            fsync_directory(file.parent)
        except (StoreError, UserError, OSError, ValueError) as error:
            self._say(f"store: decoded images are not fetched: {error}")
            return False
        finally:
            partial.unlink(missing_ok=True)
        self._say(f"store: brought the decoded images ({size / 1e6:,.0f} MB)")
        return True

    def offer(self, file: Path) -> None:
        """Uploads the file behind what comes next, unless it is there or too large."""
        if file.stat().st_size <= LIMIT_BYTES:
            threading.Thread(target=self._upload, args=(file,), name="pitstop-shelf", daemon=True).start()

    def _upload(self, file: Path) -> None:
        try:
            bucket = Bucket.open(self._url, FOLDER)
            if file.name not in bucket.names(""):
                bucket.upload(file.name, file, lambda: None)
        except (StoreError, UserError, OSError, ValueError) as error:
            self._say(f"store: decoded images are not kept there: {error}")
