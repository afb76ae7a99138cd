"""Downloads one file whose checksum is known: continued after a cut, verified, once for all processes."""

import errno
import hashlib
import os
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pitstop import files
from pitstop.data.locks import exclusive
from pitstop.errors import UserError

TIMEOUT_SECONDS = 10.0  # to connect, and between two pieces
MAX_RETRIES = 3
SAY_EVERY_SECONDS = 5.0
PIECE_BYTES = 1 << 18


class DownloadError(UserError):
    """The file did not arrive, or another one did."""


class _BeginAnewError(Exception):
    """The server does not continue where the part ends."""


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    size_hint_bytes: int | None,
    say: Callable[[str], None],
) -> None:
    """Makes sure that `target` is there and has the checksum `md5`; its folder is created.

    What has arrived is in `<target>.part` and is continued, also by a later process. `<target>.lock` lets one process
    work while the others wait, and then find the file. Proxies are taken from the environment.

    Raises:
        DownloadError: no network, no such file, cut too often, or the wrong file (which is then removed).
        UserError: the disk is too small, or a wrong `target` is there already.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with exclusive(target.with_name(target.name + ".lock"), say=say):
        if target.exists():
            require_md5(target, md5)
            return
        transfer = _Transfer(url, part, md5, size_hint_bytes, say)
        from_before = part.exists()
        transfer.run()
        if from_before and file_md5(part) != md5:
            say(f"{part.name} was of another file: beginning anew.")
            part.unlink()
            transfer.run()
        if (got := file_md5(part)) != md5:
            got_bytes = part.stat().st_size
            part.unlink()
            raise DownloadError(
                f"{url} serves another file: expected MD5 {md5}, got {got} ({got_bytes:,} bytes). It was removed."
            )
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        files.fsync_directory(target.parent)


def file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what torchvision publishes
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def require_md5(path: Path, md5: str) -> None:
    """Raises UserError with both checksums if `path` has another one than `md5`."""
    if (got := file_md5(path)) != md5:
        raise UserError(
            f"{path} is damaged or another file: expected MD5 {md5}, got {got} ({path.stat().st_size:,} bytes). "
            "Delete it, or replace it by the right one."
        )


@dataclass
class _Transfer:
    url: str
    part: Path
    md5: str
    size_hint_bytes: int | None
    say: Callable[[str], None]
    received_bytes: int = 0  # in this process, over all tries

    def run(self) -> None:
        """Fills `part` with all that the server has, not yet verified."""
        retries = 0
        while True:
            asked, received_before = self._part_bytes(), self.received_bytes
            try:
                cause = self._receive(asked)
            except HTTPError as error:
                error.close()
                if error.code == 416 and asked:  # nothing after the part: it is whole, or not of this file
                    if file_md5(self.part) == self.md5:
                        return
                    self.part.unlink()
                    continue
                cause = f"the server answers {error.code} {error.reason}"
            except _BeginAnewError as error:
                self.part.unlink(missing_ok=True)
                if asked:
                    continue
                cause = str(error)
            except (OSError, HTTPException) as error:
                self._refuse_full_disk(error)
                cause = str(getattr(error, "reason", error)) or type(error).__name__
            if cause is None:
                return
            if self.received_bytes == received_before or retries == MAX_RETRIES:
                kept = f" {self._part_bytes() / 1e6:,.0f} MB are kept and continued next time." if retries else ""
                raise DownloadError(f"Cannot download {self.url}: {cause}.{kept}")
            retries += 1
            self.say(f"Download cut at {self._part_bytes() / 1e6:,.1f} MB ({cause}): retry {retries} of {MAX_RETRIES}.")

    def _receive(self, asked: int) -> str | None:
        """One request, for what follows the first `asked` bytes. Returns why something is missing, or None."""
        headers = {"User-Agent": "pitstop", **({"Range": f"bytes={asked}-"} if asked else {})}
        try:
            request = urllib.request.Request(self.url, headers=headers)
        except ValueError as error:
            raise DownloadError(f"{self.url!r} is no URL ({error}): expected https://... or file:///...") from error
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            offset, total = _range_of(response)
            if offset not in (0, asked):
                raise _BeginAnewError(f"the server sends from byte {offset}, asked for {asked}")
            expected = total or self.size_hint_bytes
            files.require_space(self.part.parent, max(0, (expected or 0) - asked), f"the download of {self.url}")
            with open(self.part, "ab" if offset else "wb") as file:
                self._copy(response, file, offset, expected)
        return "the connection was cut" if total is not None and self._part_bytes() < total else None

    def _copy(self, response: Any, file: Any, offset: int, total: int | None) -> None:
        started = said = time.monotonic()
        here = offset
        while piece := response.read1(PIECE_BYTES):
            file.write(piece)
            here += len(piece)
            self.received_bytes += len(piece)
            now = time.monotonic()
            if now - said >= SAY_EVERY_SECONDS:
                said = now
                self.say(_progress(self.part.stem, here, total, (here - offset) / (now - started)))

    def _part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _refuse_full_disk(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = (self.size_hint_bytes or 0) - self._part_bytes()
            files.require_space(self.part.parent, needed, f"the download of {self.url}")
            raise UserError(f"{self.part}: {error.strerror}. Free some space, or set PITSTOP_DATA_DIR.") from error


def _range_of(response: Any) -> tuple[int | None, int | None]:
    """Where the body begins in the file (None: the server does not say), and the bytes of the whole file if known."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not match:
            return None, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _progress(name: str, here: int, total: int | None, bytes_per_second: float) -> str:
    speed = f"{bytes_per_second / 1e6:,.1f} MB/s"
    if not total:
        return f"{name}: {here / 1e6:,.0f} MB, {speed}"
    left = f"{max(0, total - here) / max(bytes_per_second, 1):,.0f} s left"
    return f"{name}: {here / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed}, {left}"
