"""`pitstop fetch`, as a person calls it."""

import hashlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import BODY, Handler, Server, send, serving, without_proxies
from huggingface_hub import constants

from pitstop import fetch
from pitstop.download import arrival, transfer
from pitstop.errors import PERSON_DECIDES, UserError

FETCH = [sys.executable, "-c", "import sys; from pitstop.fetch import command; sys.exit(command(sys.argv[1:]))"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    without_proxies(monkeypatch)
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "data"))
    with serving() as state:
        yield state


def test_a_url(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.command([server.url]) == 0
    assert (tmp_path / "data" / "file.bin").read_bytes() == BODY
    out, err = capsys.readouterr()
    assert out == f"{server.url} is at {tmp_path}/data/file.bin\n"
    assert "1,048,576 bytes, SHA-256 fbbab289f7f94b25736c58be46a994c441fd02552cc6022352e3d86d2fab7c83" in err
    assert fetch.command([server.url]) == 0
    assert len(server.ranges) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_url_as_people_type_it(server: Server, tmp_path: Path) -> None:
    assert fetch.command([f"{server.base}/my 狗%2B.zip?a=1"]) == 0
    assert (tmp_path / "data" / "my 狗+.zip").read_bytes() == BODY
    assert server.paths == ["/my%20%E7%8B%97%2B.zip?a=1"]
    (tmp_path / "data" / "folder").mkdir()
    for last in ("folder", ".."):
        with pytest.raises(UserError, match="is a folder"):
            fetch.command([f"{server.base}/{last}"])


def test_a_wrong_file_for_a_known_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_URL", server.url)
    with pytest.raises(UserError, match=r"(?s)serves another file.*set CIFAR10_URL"):
        fetch.command(["cifar10"])


@pytest.mark.parametrize("argv", [["--help"], [], ["cifar10", "--prize", "3"]])
def test_help_and_wrong_flags(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch.command(argv)
    assert caught.value.code == (0 if argv == ["--help"] else 2)
    assert "--price" in "".join(capsys.readouterr()) or not argv


def test_an_unknown_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"resnet1888: timm .* has no such model"):
        fetch.command(["resnet1888"])
    with pytest.raises(UserError, match="names no file"):
        fetch.command([server.base + "/"])


def test_weights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"X-Repo-Commit": "a" * 40, "X-Linked-Etag": f'"{hashlib.sha256(BODY).hexdigest()}"'}
    server.behave = lambda handler, start: send(handler, BODY, start, headers=about)
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert fetch.command(["test_resnet"]) == 0
    assert [path.read_bytes() for path in (tmp_path / "hub").rglob("model.safetensors")] == [BODY]


def slow(handler: Handler, start: int) -> None:
    """50 kB a second."""
    try:
        send(handler, BODY, start, cut_after=0, headers={"ETag": '"v1"'})
        for at in range(start, len(BODY), 5000):
            handler.wfile.write(BODY[at : at + 5000])
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.slow
def test_slow_interrupted_and_continued_without_torch(server: Server, tmp_path: Path) -> None:
    """Within ten seconds: speed, time left, price, and what to set. Then Ctrl-C, and the rest."""
    server.behave = slow
    environment = os.environ | {"PITSTOP_PRICE": "36", "CIFAR10_URL": server.url}
    begun = time.monotonic()
    process = subprocess.Popen([*FETCH, server.url], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    while not any("MB/s" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1]
    assert time.monotonic() - begun < 10
    assert " left, which cost 0.1" in lines[-1] or " left, which cost 0.2" in lines[-1], lines
    assert "at 36 an hour" in lines[-1]
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == PERSON_DECIDES
    assert f"pitstop fetch {server.url} goes on from there" in rest
    assert "Traceback" not in rest
    kept = (tmp_path / "data" / "file.bin.part").stat().st_size
    assert 100_000 < kept < len(BODY)
    server.behave = lambda handler, start: send(handler, BODY, start, headers={"ETag": '"v1"'})
    assert fetch.command([server.url]) == 0
    assert server.ranges[-1] == f"bytes={kept}-"
    assert (tmp_path / "data" / "file.bin").read_bytes() == BODY


def test_known_sets_need_no_torch(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pitstop.fetch import command\n"
        "try: command(['cifar10'])\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(*({'torch', 'numpy', 'timm', 'torchvision'} & sys.modules.keys()))"
    )
    environment = os.environ | {"CIFAR10_URL": server.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "UserError\n\n", done.stderr


def test_which_mirror_to_set_is_said_when_it_is_slow(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arrival, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(arrival, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("CIFAR10_URL", server.url)
    server.behave = lambda handler, start: send(handler, BODY, start, announced=170_000_000, cut_after=500_000)
    with pytest.raises(UserError):
        fetch.command(["cifar10"])
    assert "If that is too slow: set CIFAR10_URL to the URL of a mirror" in capsys.readouterr().err


def test_on_a_terminal_one_line_is_written_over(server: Server, tmp_path: Path) -> None:
    def drip(handler: Handler, start: int) -> None:
        if start:
            send(handler, BODY, start)
            return
        send(handler, BODY, cut_after=500_000, headers={"ETag": '"v1"'})
        handler.wfile.flush()
        time.sleep(0.5)
        handler.wfile.write(BODY[500_000:])

    server.behave = drip
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen([*FETCH, server.url], stderr=theirs, stdout=subprocess.DEVNULL)
        os.close(theirs)
        seen = b""
        while True:
            try:
                piece = screen.read(1000)
            except OSError:  # Linux: the other end is closed
                break
            if not piece:
                break
            seen += piece
        assert process.wait(20) == 0
    assert seen.count(b"\rfile.bin: ") >= 2
    assert b"MB/s" in seen
