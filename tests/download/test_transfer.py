"""Downloads from a real server that cuts, ignores ranges, lies, and hangs. Oracle: hashlib and the requests seen."""

import hashlib
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import BODY, Handler, Server, deaf, redirect, send, serving, without_proxies

from pitstop.download import Arrival, Checksum, DownloadError, Remote, answer, arrival, download, transfer
from pitstop.errors import UserError

MD5 = hashlib.md5(BODY).hexdigest()
OTHER = BODY[::-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 0.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    without_proxies(monkeypatch)
    with serving() as state:
        yield state


def get(server: Server | str, target: Path, *, md5: str | None = MD5, urls: tuple[str, ...] = ()) -> list[str]:
    said: list[str] = []
    checksum = Checksum("md5", md5) if md5 else None
    url = server if isinstance(server, str) else server.url
    download(Remote(urls or (url,), checksum, len(BODY)), target, Arrival(said.append))
    return said


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_whole_file(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "new" / "f")
    assert (tmp_path / "new" / "f").read_bytes() == BODY
    assert names(tmp_path / "new") == {"f", "f.lock"}


@pytest.mark.parametrize("md5", [MD5, None])
def test_cut_connection_is_continued(server: Server, tmp_path: Path, md5: str | None) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=400_000, headers={"ETag": '"v1"'})
    get(server, tmp_path / "f", md5=md5)
    assert (tmp_path / "f").read_bytes() == BODY
    assert server.ranges == [None, "bytes=400000-", "bytes=800000-"]
    assert server.conditions == [None, '"v1"', '"v1"']


def test_a_long_download_may_be_cut_often(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try brings enough: it is no failure, however many there are."""
    monkeypatch.setattr(transfer, "ENOUGH_BYTES", 50_000)
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=60_000)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert len(server.ranges) == 18


def test_gives_up_after_retries_that_bring_little_and_keeps_the_part(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=1000)
    with pytest.raises(DownloadError, match="connection was cut"):
        get(server, tmp_path / "f")
    assert len(server.ranges) == 5
    assert (tmp_path / "f.part").read_bytes() == BODY[:5000]
    server.behave = lambda handler, start: send(handler, BODY, start)
    get(server, tmp_path / "f")
    assert server.ranges[-1] == "bytes=5000-"
    assert (tmp_path / "f").read_bytes() == BODY


def test_the_wait_doubles(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=waits.append))
    server.behave = lambda handler, start: handler.send_error(503)
    with pytest.raises(DownloadError, match="503"):
        get(server, tmp_path / "f")
    assert waits == [1.0, 2.0], "nothing came: with the imports that is less than 10 s"
    waits.clear()
    server.behave = lambda handler, start: (
        handler.send_error(503) if start else send(handler, BODY, start, cut_after=1000)
    )
    with pytest.raises(DownloadError, match="503"):
        get(server, tmp_path / "f")
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:5000])
    server.behave = lambda handler, start: send(handler, BODY)
    get(server, tmp_path / "f")
    assert server.ranges == ["bytes=5000-"]
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_server_without_ranges_that_cuts_is_left(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, cut_after=700_000)
    with pytest.raises(DownloadError, match="cannot continue a download, 4 times"):
        get(server, tmp_path / "f")
    assert len(server.ranges) == 5


def test_range_from_elsewhere_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:5000])
    server.behave = lambda handler, start: send(handler, BODY, start, shift=10 if start else 0)
    get(server, tmp_path / "f")
    assert server.ranges == ["bytes=5000-", None]
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize(("part", "requests"), [(BODY, 1), (b"x" * len(BODY), 2)])
def test_416_takes_a_whole_part_and_drops_another(server: Server, tmp_path: Path, part: bytes, requests: int) -> None:
    (tmp_path / "f.part").write_bytes(part)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert len(server.ranges) == requests


def test_part_of_another_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"<html>log in to the hotel's network</html>")
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_changed_file_begins_anew(server: Server, tmp_path: Path, honours_if_range: bool) -> None:
    """Without a checksum it would be a mixture of both."""

    def behave(handler: Handler, start: int) -> None:
        if len(server.ranges) == 1:
            send(handler, BODY, cut_after=300_000, headers={"ETag": '"old"'})
        else:
            send(handler, OTHER, 0 if honours_if_range else start, headers={"ETag": '"new"'})

    server.behave = behave
    assert any("beginning anew" in line for line in get(server, tmp_path / "f", md5=None))
    assert (tmp_path / "f").read_bytes() == OTHER
    assert server.conditions[1] == '"old"'


def test_without_checksum_nor_version_nothing_is_continued(server: Server, tmp_path: Path) -> None:
    def behave(handler: Handler, start: int) -> None:
        send(handler, BODY, start, cut_after=300_000 if len(server.ranges) == 1 else None)

    server.behave = behave
    get(server, tmp_path / "f", md5=None)
    assert server.ranges == [None, None]
    assert (tmp_path / "f").read_bytes() == BODY


def test_what_was_left_of_another_url_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, cut_after=1000, headers={"ETag": '"v1"'})
    with pytest.raises(DownloadError):
        get(server.url + "?first", tmp_path / "f", md5=None)
    assert (tmp_path / "f.part").exists()
    server.ranges.clear()
    server.behave = lambda handler, start: send(handler, BODY, start, headers={"ETag": '"v1"'})
    get(server, tmp_path / "f", md5=None)
    assert server.ranges == [None]


def test_wrong_file_names_url_and_both_checksums(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, OTHER, start)
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path / "f")
    for part in (server.url, MD5, hashlib.md5(OTHER).hexdigest()):
        assert part in str(caught.value)
    assert names(tmp_path) == {"f.lock"}


def test_a_web_page_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    """Not even where no checksum is known; and what had arrived before is kept."""
    (tmp_path / "f.part").write_bytes(BODY[:5000])
    page = b"\n<!DOCTYPE html><html>please log in</html>"
    server.behave = lambda handler, start: send(handler, page)
    for md5 in (MD5, None):
        with pytest.raises(DownloadError, match="a web page"):
            get(server, tmp_path / "f", md5=md5)
        assert (tmp_path / "f.part").exists() == (md5 is not None)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_length_that_is_announced_too_long(server: Server, tmp_path: Path, md5: str | None) -> None:
    """What the server has is taken if it proves to be the file: by its checksum, or by what follows nothing."""
    server.behave = lambda handler, start: send(
        handler, BODY, start, announced=len(BODY) + 1000, headers={"ETag": '"v1"'}
    )
    get(server, tmp_path / "f", md5=md5)
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_length_that_is_announced_too_long_for_ever(server: Server, tmp_path: Path) -> None:
    def behave(handler: Handler, start: int) -> None:
        send(handler, BODY + b"z", min(start, len(BODY)), cut_after=len(BODY) - start, announced=len(BODY) + 1000)

    server.behave = behave
    with pytest.raises(DownloadError, match="1,049,576 bytes were announced"):
        get(server, tmp_path / "f", md5=hashlib.md5(BODY + b"z").hexdigest())


def test_a_length_that_is_announced_too_short(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: send(handler, BODY, start, announced=900_000)
    with pytest.raises(DownloadError, match=r"serves another file.*900,000 bytes"):
        get(server, tmp_path / "f")


def test_redirects_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    def behave(handler: Handler, start: int) -> None:
        if handler.path == "/file.bin":
            redirect(handler, "/elsewhere")
        else:
            send(handler, BODY, start, cut_after=600_000)

    server.behave = behave
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert server.paths == ["/file.bin", "/elsewhere"] * 2
    assert server.ranges[-1] == "bytes=600000-"


def test_the_next_mirror_continues_what_the_first_began(server: Server, tmp_path: Path) -> None:
    def behave(handler: Handler, start: int) -> None:
        send(handler, BODY, start, cut_after=100_000 if handler.path == "/one" else None)

    server.behave = behave
    get(server, tmp_path / "f", urls=(f"{server.base}/one", f"{server.base}/two"))
    assert (tmp_path / "f").read_bytes() == BODY
    assert (server.paths[-1], server.ranges[-1]) == ("/two", "bytes=500000-")


def test_mirrors_that_all_fail_are_all_named(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: handler.send_error(404)
    with pytest.raises(DownloadError, match=r"(?s)/one: the server answers 404.*/two: the server answers 404"):
        get(server, tmp_path / "f", urls=(f"{server.base}/one", f"{server.base}/two"))
    assert len(server.ranges) == 2


def test_sockets_that_never_answer_are_left_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many mirrors there are."""
    without_proxies(monkeypatch)
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.6)
    monkeypatch.setattr(answer, "STALL_SECONDS", 1.0)
    begun = time.monotonic()
    with deaf() as one, deaf() as two, pytest.raises(DownloadError, match=r"(?s)no answer within 0.3 s.*no answer"):
        get("", tmp_path / "f", urls=(f"{one}/f", f"{two}/f"))
    assert time.monotonic() - begun < 2


def test_a_name_that_is_looked_up_for_ever_is_left_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time-out of a socket bounds that."""
    without_proxies(monkeypatch)
    released = threading.Event()
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) and [])
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0.3 s"):
        get("http://files.example/f", tmp_path / "f")
    assert time.monotonic() - begun < 3
    released.set()


def test_headers_that_drip_are_left_in_bounded_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(handler: Handler, start: int) -> None:
        for character in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 200:
            handler.wfile.write(bytes([character]))
            if server.released.wait(0.05):
                return

    server.behave = drip
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.5)
    with pytest.raises(DownloadError, match=r"no answer within 0.5 s"):
        get(server, tmp_path / "f")


def test_a_late_answer_is_closed() -> None:
    """By the thread that was left behind."""
    closed = threading.Event()

    def slow(request: object, timeout: float) -> SimpleNamespace:
        time.sleep(0.3)
        return SimpleNamespace(close=closed.set)

    with pytest.raises(TimeoutError):
        answer.answer(urllib.request.Request("http://files.example/f"), 0.1, slow)
    assert closed.wait(5)


def test_a_stall_is_reconnected_and_then_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(handler: Handler, start: int) -> None:
        send(handler, BODY, start, cut_after=1000)
        handler.wfile.flush()
        server.released.wait(20)

    server.behave = stall
    monkeypatch.setattr(answer, "STALL_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"no byte for .*0\.0 MB are kept and continued next time"):
        get(server, tmp_path / "f")
    assert time.monotonic() - begun < 5
    assert server.ranges == [None, *(f"bytes={1000 * number}-" for number in range(1, 5))]


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="refused"):
            get(f"http://127.0.0.1:{reserved.getsockname()[1]}/f", tmp_path / "f")


def test_missing_file_and_no_url(server: Server, tmp_path: Path) -> None:
    server.behave = lambda handler, start: handler.send_error(404)
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "f")
    assert len(server.ranges) == 1
    with pytest.raises(DownloadError, match="is no URL"):
        get("mirror.example", tmp_path / "f")


def test_disk_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(UserError, match=r"0 MB free.*needs 1 MB") as caught:
        get(server, tmp_path / "f")
    assert not isinstance(caught.value, DownloadError)


def test_progress_is_said_with_the_price(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "FIRST_SECONDS", 0.0)
    monkeypatch.setenv("PITSTOP_PRICE", "7.2")
    said = get(server, tmp_path / "f")
    assert any("of 1.0 MB" in line and "MB/s" in line and " left, which cost 0.0" in line for line in said)
    monkeypatch.setattr(arrival, "FIRST_SECONDS", 60.0)
    assert get(server, tmp_path / "g") == []


def test_a_wrong_target_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(UserError, match=hashlib.md5(b"mine").hexdigest()):
        get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert server.ranges == []


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    def slowly(handler: Handler, start: int) -> None:
        time.sleep(1.0)
        send(handler, BODY, start)

    server.behave = slowly
    program = (
        "from pathlib import Path; from pitstop.download import *; from pitstop.download import arrival\n"
        "arrival.FIRST_SECONDS = 0.0\n"
        f"remote = Remote(({server.url!r},), Checksum('md5', {MD5!r}), {len(BODY)})\n"
        f"download(remote, Path({str(tmp_path / 'f')!r}), Arrival(print))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert server.ranges == [None]
    (waited,) = (text for text in said if "waiting for it" in text)
    assert "f: 0.0 of 1.0 MB, 0.00 MB/s" in waited, "who waits says how far it is"
    assert (tmp_path / "f").read_bytes() == BODY
