"""Downloads from a real server that cuts, ignores ranges, lies, and hangs. Oracle: hashlib and the requests seen."""

import hashlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pitstop.data import download as module
from pitstop.data.download import DownloadError, download
from pitstop.errors import UserError

BODY = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(BODY).hexdigest()


@dataclass
class Server:
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)  # of each request, in order
    behave: Callable[[BaseHTTPRequestHandler, int], None] = lambda handler, start: send(handler, BODY, start)


def send(
    handler: BaseHTTPRequestHandler, body: bytes, start: int, *, cut_after: int | None = None, shift: int = 0
) -> None:
    if start >= len(body):
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start - shift))
    handler.end_headers()
    rest = body[start + shift :]
    handler.wfile.write(rest if cut_after is None else rest[:cut_after])
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            state.behave(self, int(asked[6:-1]) if asked else 0)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
        yield state
        httpd.shutdown()
        thread.join()


def get(server: Server, target: Path, **changes: object) -> list[str]:
    said: list[str] = []
    options = {"md5": MD5, "size_hint_bytes": len(BODY), "say": said.append, **changes}
    download(server.url, target, **options)  # type: ignore[arg-type]
    return said


def test_whole_file(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "new" / "f")
    assert (tmp_path / "new" / "f").read_bytes() == BODY
    assert not (tmp_path / "new" / "f.part").exists()


def test_cut_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=400_000)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert server.ranges == [None, "bytes=400000-", "bytes=800000-"]


def test_gives_up_after_three_retries_and_keeps_the_part(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=1000)
    with pytest.raises(DownloadError, match="connection was cut"):
        get(server, tmp_path / "f")
    assert len(server.ranges) == 4
    assert (tmp_path / "f.part").read_bytes() == BODY[:4000]
    server.behave = lambda handler, start: send(handler, BODY, start)
    get(server, tmp_path / "f")
    assert server.ranges[-1] == "bytes=4000-"
    assert (tmp_path / "f").read_bytes() == BODY


def test_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:5000])
    server.behave = lambda handler, start: send(handler, BODY, 0)
    get(server, tmp_path / "f")
    assert server.ranges == ["bytes=5000-"]
    assert (tmp_path / "f").read_bytes() == BODY


def test_range_from_elsewhere_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:5000])
    server.behave = lambda handler, start: send(handler, BODY, start, shift=10 if start else 0)
    get(server, tmp_path / "f")
    assert server.ranges == ["bytes=5000-", None]
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize(("part", "ranges"), [(BODY, 1), (b"x" * len(BODY), 2)])
def test_416_takes_a_whole_part_and_drops_another(server: Server, tmp_path: Path, part: bytes, ranges: int) -> None:
    (tmp_path / "f.part").write_bytes(part)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert len(server.ranges) == ranges


def test_part_of_another_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"<html>log in to the hotel's network</html>")
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_wrong_file_names_url_and_both_checksums(server: Server, tmp_path: Path) -> None:
    page = b"<html>no such mirror</html>"
    server.behave = lambda handler, start: send(handler, page, start)
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "f")
    for part in (server.url, MD5, hashlib.md5(page).hexdigest()):
        assert part in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"f.lock"}


def test_hanging_server_is_left_in_bounded_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    server.behave = lambda handler, start: released.wait(20) and None
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        get(server, tmp_path / "f")
    released.set()
    assert time.monotonic() - begun < 3
    assert len(server.ranges) == 1, "nothing arrived: no retry"


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        server = Server(url=f"http://127.0.0.1:{reserved.getsockname()[1]}/f")
        with pytest.raises(DownloadError, match="refused"):
            get(server, tmp_path / "f")


def test_missing_file_and_no_url(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: handler.send_error(404)
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "f")
    with pytest.raises(DownloadError, match="is no URL"):
        get(Server(url="mirror.example"), tmp_path / "f")


def test_disk_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(UserError, match=r"0 MB free.*needs 1 MB") as caught:
        get(server, tmp_path / "f")
    assert not isinstance(caught.value, DownloadError)


def test_progress_is_said(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAY_EVERY_SECONDS", 0.0)
    assert any("of 1 MB" in line and "MB/s" in line and "s left" in line for line in get(server, tmp_path / "f"))
    monkeypatch.setattr(module, "SAY_EVERY_SECONDS", 60.0)
    assert get(server, tmp_path / "g") == []


def test_a_wrong_target_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(UserError, match=hashlib.md5(b"mine").hexdigest()):
        get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert server.ranges == []


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    def slowly(handler: BaseHTTPRequestHandler, start: int) -> None:
        time.sleep(1.0)
        send(handler, BODY, start)

    server.behave = slowly
    program = (
        "import sys; from pathlib import Path; from pitstop.data.download import download; "
        f"download({server.url!r}, Path({str(tmp_path / 'f')!r}), md5={MD5!r}, size_hint_bytes=None, say=print)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert server.ranges == [None]
    assert (tmp_path / "f").read_bytes() == BODY
