"""One run's corner of an object store: everything below <url>/<run name>/. Thin over obstore.

Reading, writing and listing; and replacing an object only if it is still the one that was read. Stores without
conditional writes (`conditional` is False) get the second best: read, compare, write.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from pitstop.errors import UserError
from pitstop.store.connect import connect
from pitstop.store.trouble import Conflict, StoreError, StoreUnreachable, Unsupported, attended, patiently, translated

CHUNK_BYTES = 5 << 20  # at least 5 MiB, or S3 refuses the parts
PARTS_AT_ONCE = 3  # of a large file; so at most 4 chunks are in memory
OPEN_TRIES_SECONDS = 60.0  # a network may be late when a machine boots
DOWNLOAD_TRIES_SECONDS = 60.0  # for each chunk

Version = dict[str, str]  # what a store calls the state of an object: its e_tag, its generation


def _version(answer: Any) -> Version:
    return {key: answer[key] for key in ("e_tag", "version") if answer.get(key)}


class Bucket:
    """See the module. Every method may raise StoreError."""

    def __init__(self, control: Any, data: Any, where: str) -> None:
        self.where = where
        self.conditional = True
        self._control = control  # small objects: gives up soon, never tries again by itself
        self._data = data

    @classmethod
    def open(
        cls,
        url: str,
        run_name: str,
        *,
        timeout_seconds: float = 10.0,
        tries_seconds: float = OPEN_TRIES_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> "Bucket":
        """The corner of run `run_name` in the store `url`, after it was written to, read from and deleted from.

        Args:
            timeout_seconds: of a request for a small object; must be well below a lease's time to live.
            tries_seconds: for how long it is tried again if it does not answer.
            say: told once, when that begins.

        Raises:
            UserError: a wrong url, no obstore, no credentials, no such bucket; StoreUnreachable: it did not answer.
        """
        control, data, tried = connect(url, run_name, timeout_seconds)
        bucket = cls(control, data, f"{url.rstrip('/')}/{run_name}")
        try:
            patiently(
                bucket._check,
                tries_seconds,
                lambda error: say(f"store: {url} does not answer ({error}); trying for {tries_seconds:.0f} s."),
            )
        except (StoreError, FileNotFoundError) as error:
            kind = UserError if isinstance(error, FileNotFoundError) or error.lasting else StoreUnreachable
            raise kind(f"--store {url} cannot be used: {error}. Tried: {tried}.") from error
        return bucket

    def _check(self) -> None:
        """Writes, reads, deletes; and finds out whether the store really refuses what it should."""
        name = f"probe-{secrets.token_hex(8)}"
        first = self._put(name, b"1", "overwrite")
        second = self._put(name, b"2", "overwrite")
        self.conditional = (
            self._refuses(name, "create") and self._refuses(name, first) and not self._refuses(name, second)
        )
        if self.read(name, limit_bytes=100) is None:
            raise StoreError("what was written just now is not there")
        self.delete([name])

    def _refuses(self, name: str, mode: Any) -> bool:
        try:
            self._put(name, b"3", mode)
        except Conflict:
            return True
        except Unsupported:
            pass
        return False

    def _put(self, name: str, data: bytes, mode: Any) -> Version:
        import obstore

        with translated():
            return _version(obstore.put(self._control, name, data, mode=mode, use_multipart=False))

    def read(self, name: str, *, limit_bytes: int) -> tuple[bytes, Version] | None:
        """A small object and its version, or None if it is not there. Raises StoreError if it is larger than that."""
        import obstore

        try:
            with translated():
                answer = obstore.get(self._control, name)
                if answer.meta["size"] > limit_bytes:
                    raise StoreError(f"{self.where}/{name} has {answer.meta['size']} bytes", lasting=True)
                return bytes(answer.bytes()), _version(answer.meta)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> Version:
        return self._put(name, data, "overwrite")

    def swap(self, name: str, data: bytes, expected: Version | None) -> Version:
        """Replaces an object that is still as `expected` (None: not there yet). `data` must never have been there.

        May be called again with the same arguments when the answer was lost: what is there already counts as done.

        Raises:
            Conflict: it is another. StoreError: it is not known whether it was replaced.
        """
        if not self.conditional:
            found = self.read(name, limit_bytes=len(data) + (1 << 20))
            if (found[1] if found else None) != expected and (found is None or found[0] != data):
                raise Conflict(f"{name} was written by another", found)
            return self.write(name, data)
        try:
            return self._put(name, data, "create" if expected is None else expected)
        except (Conflict, FileNotFoundError) as error:
            found = self.read(name, limit_bytes=len(data) + (1 << 20))
            if found and found[0] == data:
                return found[1]
            if (found[1] if found else None) == expected:
                raise StoreError("busy: two requests at once") from error
            raise Conflict(f"{name} was written by another", found) from error

    def upload(self, name: str, path: Path, go_on: Callable[[], None]) -> dict[str, Any]:
        """Uploads what `path` holds now, in parts where it is large. Returns {"bytes", "sha256"}.

        `go_on` is called before each part and may raise to stop the upload: nothing of it is then visible.
        """
        import obstore

        digest = hashlib.sha256()
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts = _parts(file, size, digest.update, go_on)
            with translated():
                if size <= CHUNK_BYTES:
                    obstore.put(self._data, name, b"".join(parts), use_multipart=False)
                else:
                    obstore.put(self._data, name, parts, chunk_size=CHUNK_BYTES, max_concurrency=PARTS_AT_ONCE)
        return {"bytes": size, "sha256": digest.hexdigest()}

    def download(self, name: str, path: Path, size: int) -> None:
        """Writes the first `size` bytes of an object to a new file, fsynced. In ranges: a cut costs one of them."""
        import obstore

        with open(path, "xb") as file:
            for start in range(0, size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, size - start)

                def part(start: int = start, length: int = length) -> bytes:
                    with translated():
                        return bytes(obstore.get_range(self._data, name, start=start, length=length))

                data = patiently(partial(attended, part), DOWNLOAD_TRIES_SECONDS)
                if len(data) != length:
                    raise ValueError(f"{name} there is shorter than it was")
                file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def names(self, prefix: str) -> dict[str, int]:
        """Name -> size in bytes of everything below `prefix`, which ends at a slash."""
        import obstore

        with translated():
            return {item["path"]: item["size"] for item in obstore.list(self._control, prefix.rstrip("/")).collect()}

    def delete(self, names: Sequence[str]) -> None:
        """In one request where the store has one for that; what is not there counts as deleted."""
        import obstore

        if names:
            with suppress(FileNotFoundError), translated():
                obstore.delete(self._control, names)


def _parts(file: IO[bytes], size: int, seen: Callable[[bytes], None], go_on: Callable[[], None]) -> Iterator[bytes]:
    """The first `size` bytes of a file; others may be appending to it."""
    left = size
    while left:
        go_on()
        part = file.read(min(CHUNK_BYTES, left))
        if not part:
            raise StoreError(f"{file.name} became shorter while it was read")
        left -= len(part)
        seen(part)
        yield part
