"""A server of one file that does as it is told: cuts, drips, lies, redirects, or never answers."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BODY = bytes(range(256)) * 4096  # 1 MiB


class Handler(BaseHTTPRequestHandler):
    state: "Server"

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.state.paths.append(self.path)
        self.state.ranges.append(asked)
        self.state.conditions.append(self.headers.get("If-Range"))
        try:
            self.state.behave(self, int(asked[6:-1]) if asked else 0)
        except (BrokenPipeError, ConnectionResetError):  # who asked has gone
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None: ...


Behaviour = Callable[[Handler, int], None]


@dataclass
class Server:
    base: str = ""
    paths: list[str] = field(default_factory=list)  # of each request, in order
    ranges: list[str | None] = field(default_factory=list)
    conditions: list[str | None] = field(default_factory=list)
    behave: Behaviour = lambda handler, start: send(handler, BODY, start)
    released: threading.Event = field(default_factory=threading.Event)  # set at the end: who hangs, hangs on it

    @property
    def url(self) -> str:
        return f"{self.base}/file.bin"


def send(
    handler: Handler,
    body: bytes,
    start: int = 0,
    *,
    cut_after: int | None = None,
    shift: int = 0,
    announced: int | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    """The body from `start` on, as a good server does; `announced` lies about its whole length."""
    length = len(body) if announced is None else announced
    if start >= len(body):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(body)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start + shift}-{length - 1}/{length}")
    handler.send_header("Content-Length", str(length - start - shift))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.close_connection = True
    if handler.command == "HEAD":
        return
    rest = body[start + shift :]
    handler.wfile.write(rest if cut_after is None else rest[:cut_after])


def redirect(handler: Handler, to: str, headers: dict[str, str] | None = None, status: int = 302) -> None:
    handler.send_response(status)
    handler.send_header("Location", to)
    handler.send_header("Content-Length", "0")
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()


@contextmanager
def serving(behave: Behaviour | None = None) -> Iterator[Server]:
    state = Server()
    if behave:
        state.behave = behave
    own = type("Own", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.base = f"http://127.0.0.1:{httpd.server_port}"
        try:
            yield state
        finally:
            state.released.set()
            httpd.shutdown()
            thread.join()


@contextmanager
def deaf() -> Iterator[str]:
    """The address of a socket that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
