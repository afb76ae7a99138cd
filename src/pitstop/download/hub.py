"""What a server that speaks Hugging Face's protocol knows of a file, before it is downloaded."""

import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from pitstop.download.answer import answer, later, words
from pitstop.download.transfer import ANSWER_SECONDS, BACKOFF_SECONDS, FIRST_RETRIES, DownloadError

MAX_REDIRECTS = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[\w.-]{1,128}")  # it becomes the name of a file


@dataclass(frozen=True)
class HubFile:
    commit: str
    etag: str  # of a large file its SHA-256
    size_bytes: int | None


class _Stay(urllib.request.HTTPRedirectHandler):
    """The headers that matter are those of the hub, not those of the store it redirects to."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


def look_up(url: str, say: Callable[[str], None]) -> HubFile | None:
    """None: there is no such file.

    Raises:
        DownloadError: no network, within 10 s; or the server is not of this kind.
    """
    opener = urllib.request.build_opener(_Stay)
    place, retries, redirects = url, 0, 0
    while True:
        request = urllib.request.Request(place, method="HEAD", headers={"User-Agent": "pitstop"})
        try:
            with answer(request, ANSWER_SECONDS, opener.open) as response:
                status, reason, headers = response.status, response.reason, response.headers
        except HTTPError as error:
            with error:
                status, reason, headers = error.code, error.reason, error.headers
        except (OSError, HTTPException) as error:
            raise DownloadError(f"{place}: {words(error)}.") from error
        if found := _hub_file(status, headers):
            return found
        if 300 <= status < 400 and headers.get("Location") and redirects < MAX_REDIRECTS:
            redirects += 1
            place = urllib.parse.urljoin(place, headers["Location"])
        elif status == 404:
            return None
        elif later(status) and retries < FIRST_RETRIES:
            retries += 1
            say(f"{place}: the server answers {status} {reason}: asking again.")
            time.sleep(BACKOFF_SECONDS * 2 ** (retries - 1))
        elif status in (401, 403):
            raise DownloadError(f"{place}: {status} {reason}: it wants a login. Fetch the file by: hf download")
        elif status >= 400:
            raise DownloadError(f"{place}: the server answers {status} {reason}.")
        else:
            raise DownloadError(f"{place} answers, but is no Hugging Face hub, nor a mirror: is HF_ENDPOINT right?")


def _hub_file(status: int, headers: Message) -> HubFile | None:
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    commit, size = (
        headers.get("X-Repo-Commit") or "",
        headers.get("X-Linked-Size") or headers.get("Content-Length") or "",
    )
    moved = status >= 300 and not headers.get("X-Linked-Etag")
    if status >= 400 or moved or not COMMIT.fullmatch(commit) or not ETAG.fullmatch(etag):
        return None
    return HubFile(commit, etag, int(size) if size.isdecimal() else None)
