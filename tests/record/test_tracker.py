"""The real wandb client in a process of its own: no account, no server, a server that hangs; what is in its file."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pitstop.record import tracker

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, of nobody
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from pitstop.record import tracker

tracker.INIT_SECONDS, tracker.FINISH_SECONDS = 2, 4
said, folder = [], Path(sys.argv[1])
wandb = tracker.Tracker(project="p", name="digits-1", identity="abc123", config={"seed": 7}, folder=folder,
                        say=said.append)
begun = time.monotonic()
wandb.start()
slowest = 0.0
for step in range(10, 60, 10):
    tick = time.monotonic()
    wandb.send([{"kind": "train", "step": step, "loss": 1 / step, "epoch": 0.5},
                {"kind": "eval", "step": step, "accuracy": 0.25}])
    slowest = max(slowest, time.monotonic() - tick)
    time.sleep(0.1)
wandb.finish(int(sys.argv[2]))
print(json.dumps({"said": said, "slowest": slowest, "seconds": time.monotonic() - begun, "alive": wandb.is_alive(),
                  "threads": [t.name for t in threading.enumerate() if t.name == "pitstop-wandb"]}))
"""


def marked(mark: str) -> list[str]:
    """Command lines of the processes that have `PITSTOP_MARK=mark` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"PITSTOP_MARK={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def track(folder: Path, exit_code: int = 0, **environment: str) -> dict[str, Any]:
    """Runs PROGRAM without an account, with nothing on stdin; warnings of ours are errors."""
    home = folder / "home"
    home.mkdir()
    mark = str(folder)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    clean |= {"HOME": str(home), "WANDB_CACHE_DIR": str(home), "WANDB_CONFIG_DIR": str(home), "PITSTOP_MARK": mark}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM, str(folder), str(exit_code)],
        env=clean | {"WANDB_DATA_DIR": str(home)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=home,
    )
    noise = [line for line in done.stderr.splitlines() if not line.startswith("wandb: ")]  # said by its login
    assert (done.returncode, noise) == (0, []), done.stdout + done.stderr
    until = time.monotonic() + 15
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == [], "processes are left behind"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def records(folder: Path) -> list[Any]:
    """W&B's own records in the one .wandb file there: LevelDB's framing, W&B's protobuf (facts/ecosystem.md 1.4)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/*run-*/*.wandb")
    data, position, pieces, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + length]
        if kind == 0:
            break
        assert checksum == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        position += 7 + length
        pieces = piece if kind in (1, 2) else pieces + piece
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            found.append(record)
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


EXPECTED = [
    row
    for step in range(10, 60, 10)
    for row in (
        {"train/loss": 1 / step, "train/epoch": 0.5, "global_step": step},
        {"eval/accuracy": 0.25, "global_step": step},
    )
]


@pytest.mark.slow
def test_without_an_account_it_goes_offline_and_never_asks(tmp_path: Path) -> None:
    result = track(tmp_path, exit_code=3)
    assert result["said"] == [f"W&B is offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*"]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert history(tmp_path) == EXPECTED
    assert (result["alive"], result["threads"]) == (False, [])
    kinds = {record.WhichOneof("record_type"): record for record in records(tmp_path)}
    run = kinds["run"].run
    assert (run.run_id, run.project, run.display_name) == ("abc123", "p", "digits-1")
    assert {c.key: c.value_json for c in run.config.update}["seed"] == "7"
    assert kinds["exit"].exit.exit_code == 3
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in records(tmp_path) if r.HasField("metric")}
    assert "global_step" in metrics
    assert metrics["*"].step_metric == "global_step", "curves are drawn over our step"


@pytest.mark.slow
def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = track(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    assert_offline_in_time(tmp_path, result)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts, reads, and never answers."""
    server, kept = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def accept() -> None:
        while True:
            try:
                kept.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for connection in kept:
        connection.close()
    thread.join(5)


@pytest.mark.slow
def test_a_server_that_hangs(tmp_path: Path, silent_server: str) -> None:
    result = track(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=silent_server)
    assert_offline_in_time(tmp_path, result)


def assert_offline_in_time(folder: Path, result: dict[str, Any]) -> None:
    assert result["slowest"] < 0.1, "send() returns at once"
    assert "W&B cannot be reached" in result["said"][0]
    assert "recorded offline" in result["said"][0]
    assert "wandb sync" in result["said"][1]
    assert result["alive"] is False
    assert result["seconds"] < 2 * 2 + 4 + 12, "twice the patience, the finish, and what the client itself takes"
    offline = [path for path in folder.glob("wandb/offline-run-*/*.wandb")]
    assert len(offline) == 1
    assert history_of_offline(folder) == EXPECTED


def history_of_offline(folder: Path) -> list[dict[str, Any]]:
    for path in folder.glob("wandb/run-*"):  # of the attempt to go online
        for file in path.glob("*.wandb"):
            file.unlink()
    return history(folder)


@pytest.mark.slow
def test_a_wrong_key_is_offline(tmp_path: Path) -> None:
    result = track(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="too-short")
    assert any("recorded offline" in line for line in result["said"])
    assert result["alive"] is False
    assert history_of_offline(tmp_path) == EXPECTED


@pytest.mark.slow
def test_a_client_that_cannot_work_costs_a_line_and_no_traceback(tmp_path: Path) -> None:
    result = track(tmp_path, WANDB_MODE="nonsense")
    assert result["said"][-1].startswith("W&B gave up")
    assert result["said"][-1].endswith("metrics.jsonl has everything")
    assert result["alive"] is False


@pytest.mark.slow
def test_disabled_by_wandb_mode(tmp_path: Path) -> None:
    result = track(tmp_path, WANDB_MODE="disabled")
    assert result["alive"] is False
    assert list(tmp_path.glob("wandb/*")) == []


@pytest.mark.parametrize(
    ("netrc", "environment", "expected"),
    [
        ("", {}, "offline"),
        (f"machine api.wandb.ai login user password {KEY}\n", {}, "online"),
        (f"machine api.wandb.ai login user password {KEY}\n", {"WANDB_BASE_URL": "https://w.corp:8080/x"}, "offline"),
        (f"machine w.corp login user password {KEY}\n", {"WANDB_BASE_URL": "https://w.corp:8080/x"}, "online"),
        ("machine github.com login a password b\n", {}, "offline"),
        ("machine", {}, "offline"),
        ("", {"WANDB_API_KEY": KEY}, "online"),
        ("", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str, environment: dict[str, str], expected: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "netrc"
    file.write_text(netrc)
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracker._mode() == expected
