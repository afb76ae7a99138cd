"""Downloads one file: goes on after a cut, sees that it changed, verifies, and ends in any case."""

import errno
import os
import time
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pitstop import files
from pitstop.download.answer import answer, is_web_page, later, range_of, version_of, words
from pitstop.download.arrival import Arrival
from pitstop.download.checksum import Checksum
from pitstop.errors import UserError
from pitstop.locks import exclusive

ANSWER_SECONDS = 4.0  # for all mirrors together, until one answers: with a cold start of torch less than 10 s
MAX_RETRIES = 4  # in a row that bring less than ENOUGH_BYTES
FIRST_RETRIES = 2  # before the first byte: a person waits for the error
MAX_ANEW = 3  # times that what is there cannot be continued
ENOUGH_BYTES = 1 << 20
BACKOFF_SECONDS = 1.0  # before the first retry; then twice as long each time
PIECE_BYTES = 1 << 18
RESERVED = "%/:?#[]@!$&'()*+,;="  # what a URL may have (RFC 3986); a space or a Chinese name is quoted


class DownloadError(UserError):
    """The file did not arrive, or another one did."""


@dataclass(frozen=True)
class Remote:
    """A file elsewhere: the same under each of `urls`. `size_bytes` is believed where the server names no length."""

    urls: tuple[str, ...]
    checksum: Checksum | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class _Kept:
    """What the part is of, kept beside it: without a checksum only the same version of the same URL is continued."""

    url: str = ""
    version: str = ""
    total: int | None = None


@dataclass(frozen=True)
class _Trouble:
    cause: str
    lasting: bool = False  # asking again does not help


def download(remote: Remote, target: Path, arrival: Arrival, *, name: str = "") -> None:
    """Makes sure that `target` is there and has the right checksum, if one is known; its folder is created.

    What has arrived is in `<target>.part` and is continued, also by a later process. `<target>.lock` lets one process
    work while the others wait, and then find the file. `name` is what it is called, if that is not its name on disk.

    Raises:
        DownloadError: no network, no such file, cut too often, or the wrong file (which is then removed).
        UserError: the disk is too small, or a wrong `target` is there already.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")

    def watch() -> None:  # the process that works may be of a rank that prints nothing
        arrival.elsewhere(name or target.name, size_of(part), remote.size_bytes)

    with exclusive(target.with_name(target.name + ".lock"), say=arrival.say, meanwhile=watch):
        if target.exists():
            if remote.checksum:
                remote.checksum.require(target)
            return
        _from_any_mirror(remote, part, arrival, name or target.name)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        files.fsync_directory(target.parent)
        _beside(part).unlink(missing_ok=True)


def _from_any_mirror(remote: Remote, part: Path, arrival: Arrival, name: str) -> None:
    troubles: list[str] = []
    for url in remote.urls:
        if troubles:
            arrival.say(f"{troubles[-1]} Trying {url}.")
        try:
            _Transfer(url, part, remote, arrival, name).run()
            return
        except DownloadError as error:
            troubles.append(str(error))
    raise DownloadError("\n".join(troubles))


def _beside(part: Path) -> Path:
    return part.with_name(part.name + ".json")


@dataclass
class _Transfer:
    url: str
    part: Path
    remote: Remote
    arrival: Arrival
    name: str
    best_bytes: int = 0  # the most that the part has had, since it was begun anew
    failures: int = 0
    anew: int = 0
    arrived: bool = False  # anything, in this process

    def run(self) -> None:
        """Fills `part` and verifies it. Raises DownloadError."""
        self.best_bytes = size_of(self.part)
        from_before = self.best_bytes > 0
        self._fill()
        if from_before and self._wrong():
            self._begin_anew(f"{self.part.name} was of another file")
            self._fill()
        if wrong := self._wrong():
            self._drop()
            raise DownloadError(f"{self.url} serves another file: {wrong}. It was removed.")

    def _wrong(self) -> str:
        checksum = self.remote.checksum
        if checksum is None or (got := checksum.of(self.part)).startswith(checksum.expected):
            return ""
        return f"expected {checksum}, got {got} ({size_of(self.part):,} bytes)"

    def _fill(self) -> None:
        """Asks for what is missing until all is there, not yet verified."""
        while trouble := self._request():
            here = size_of(self.part)
            self.failures = 0 if here >= self.best_bytes + ENOUGH_BYTES else self.failures + 1
            self.best_bytes = max(self.best_bytes, here)
            if trouble.lasting or self.failures > (MAX_RETRIES if self.arrived else FIRST_RETRIES):
                kept = f" {here / 1e6:,.1f} MB are kept and continued next time." if here else ""
                raise DownloadError(f"Cannot download {self.url}: {trouble.cause}.{kept}")
            wait_seconds = BACKOFF_SECONDS * 2 ** max(0, self.failures - 1)
            self.arrival.say(f"{self.name}: {trouble.cause}, at {here / 1e6:,.1f} MB: asking again.")
            time.sleep(wait_seconds)

    def _request(self) -> _Trouble | None:
        """One request, for what follows the part. Returns why something is missing, or None."""
        kept = self._kept()
        if size_of(self.part) and not self.remote.checksum and not (kept.url == self.url and kept.version):
            self._begin_anew("nothing tells whether the file is still the same")
        asked = size_of(self.part)
        headers = {"User-Agent": "pitstop", **({"Range": f"bytes={asked}-"} if asked else {})}
        if asked and kept.url == self.url and kept.version:
            headers["If-Range"] = kept.version
        try:
            request = urllib.request.Request(urllib.parse.quote(self.url, safe=RESERVED), headers=headers)
        except ValueError as error:
            raise DownloadError(f"{self.url!r} is no URL ({error}): expected https://... or file:///...") from error
        try:
            with answer(request, ANSWER_SECONDS / len(self.remote.urls)) as response:
                return self._receive(response, asked, kept)
        except HTTPError as error:
            with error:
                return self._refused(error, asked)
        except (OSError, HTTPException) as error:
            self._refuse_full_disk(error)
            return _Trouble(words(error), lasting=not self.arrived)

    def _receive(self, response: Any, asked: int, kept: _Kept) -> _Trouble | None:
        offset, total = range_of(response)
        version = version_of(response.headers)
        changed = (kept.total, kept.version) != (total or kept.total, version or kept.version)
        if offset not in (0, asked):
            return self._begin_anew(f"the server sends from byte {offset}, asked for {asked}")
        if offset and kept.url == self.url and changed:
            return self._begin_anew("the file has changed")
        piece = response.read1(PIECE_BYTES)
        if offset == 0 and is_web_page(piece) and not self.name.endswith((".html", ".htm")):
            return _Trouble("it answers with a web page (a login or an error page), not with the file", lasting=True)
        if asked and not offset:
            self._begin_anew("the file has changed, or the server cannot continue a download")
        files.require_space(
            self.part.parent, (total or self.remote.size_bytes or 0) - offset, f"downloading {self.url}"
        )
        with open(self.part, "ab" if offset else "wb") as file:
            if not offset:
                files.write_json(_beside(self.part), asdict(_Kept(self.url, version, total)), durable=False)
            self._copy(response, file, piece, offset, total or self.remote.size_bytes)
        if total is not None and size_of(self.part) < total:
            return _Trouble(f"the connection was cut ({total:,} bytes were announced)")
        return None

    def _copy(self, response: Any, file: Any, piece: bytes, here: int, total: int | None) -> None:
        self.arrival.begin(self.name, here, total)
        while piece:
            self.arrived = True
            file.write(piece)
            here += len(piece)
            self.arrival.at(here)
            piece = response.read1(PIECE_BYTES)

    def _refused(self, error: HTTPError, asked: int) -> _Trouble | None:
        if error.code == 416 and asked:  # nothing follows the part: it is whole, or not of this file
            whole = f"bytes */{asked}" == error.headers.get("Content-Range")
            if self.remote.checksum.matches(self.part) if self.remote.checksum else whole:
                return None
            return self._begin_anew("what is there is longer than the file")
        return _Trouble(f"the server answers {error.code} {error.reason}", lasting=not later(error.code))

    def _begin_anew(self, why: str) -> _Trouble:
        self.anew += 1
        if self.anew > MAX_ANEW:
            raise DownloadError(f"Cannot download {self.url}: {why}, {self.anew} times.")
        self.arrival.say(f"{self.name}: {why}: beginning anew.")
        self._drop()
        self.best_bytes = 0
        return _Trouble(why)

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        _beside(self.part).unlink(missing_ok=True)

    def _kept(self) -> _Kept:
        try:
            return _Kept(**files.read_json(_beside(self.part)))
        except (OSError, ValueError, TypeError):  # none, or torn by a crash: then nothing is known of the part
            return _Kept()

    def _refuse_full_disk(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = (self.remote.size_bytes or 0) - size_of(self.part)
            files.require_space(self.part.parent, needed, f"downloading {self.url}")
            raise UserError(f"{self.part}: {error.strerror}. Free some space, or set PITSTOP_DATA_DIR.") from error


def size_of(path: Path) -> int:
    """In bytes; of a file that is not there 0."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
