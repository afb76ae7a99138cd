"""An answer to an HTTP request, in bounded time."""

import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from queue import Empty, SimpleQueue
from typing import Any

TRY_LATER = (408, 425, 429)  # and all from 500 on
STALL_SECONDS = 9.0  # without a byte, then the connection is given up


def answer(
    request: urllib.request.Request, seconds: float, open_url: Callable[..., Any] = urllib.request.urlopen
) -> Any:
    """The response to `request`, once its headers are there.

    A time-out of the socket bounds none of this: looking up a name takes as long as the resolver likes, each address of
    a host is tried for as long, and headers may drip. So a thread waits for it, and is left behind if it takes longer
    than `seconds` in all; proxies are taken from the environment.

    Raises:
        TimeoutError: no answer within `seconds`.
        OSError, HTTPException: what urllib raises (HTTPError, URLError, ...).
    """
    answers: SimpleQueue[Any] = SimpleQueue()
    too_late = threading.Event()

    def close_unread() -> None:
        with suppress(Empty):
            late = answers.get_nowait()
            if hasattr(late, "close"):
                late.close()

    def ask() -> None:
        try:
            answers.put(open_url(request, timeout=STALL_SECONDS))
        except Exception as error:  # of any kind: raised again, where it can be seen
            answers.put(error)
        if too_late.is_set():
            close_unread()

    threading.Thread(target=ask, name="answer", daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except Empty:
        too_late.set()
        close_unread()
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def range_of(response: Any) -> tuple[int | None, int | None]:
    """Where the body begins in the file (None: the server does not say), and the bytes of the whole file if known."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not match:
            return None, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def version_of(headers: Message) -> str:
    """What If-Range takes: a strong ETag, else the date of the last change; nothing if the server names neither."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def is_web_page(piece: bytes) -> bool:
    """Does a file that begins so look like HTML: a login page of the network, or an error with status 200?"""
    return piece.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html"))


def later(status: int) -> bool:
    """Does the server mean that the same request may succeed in a while?"""
    return status in TRY_LATER or status >= 500


def words(error: Exception) -> str:
    """Why no answer or no byte came."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, socket.gaierror):
        return f"the name of the host cannot be found (no network, or no DNS: {cause.strerror})"
    if isinstance(cause, TimeoutError) and "no answer" not in str(cause):
        return f"no byte for {STALL_SECONDS:g} s"
    return str(cause) or type(cause).__name__
