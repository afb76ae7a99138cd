"""What the uploader sends and in which order, when the store is well and when it is not."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from s3 import S3, Proxy, Seen
from store.machines import PREFIX, Machine, contents, look, until

from pitstop.store import trouble

Make = Callable[[str], Machine]
LARGE = 12 << 20  # three parts


def test_everything_follows(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    for step in (4, 8, 12, 16, 20):
        one.commit(step)
        until(lambda step=step: look(s3, bucket)[:1] == [step])
    one.finished()
    assert one.mirror.finish(10)
    assert look(s3, bucket) == [20, 16, 12]
    prefix = json.loads(s3.get(bucket, f"{PREFIX}/latest"))["records"]
    for name in ("config.json", "metrics.jsonl", "events.jsonl", "status.json"):
        assert s3.get(bucket, f"{PREFIX}/{prefix}/{name}") == (one.run / name).read_bytes(), name
    final = json.loads(s3.get(bucket, f"{PREFIX}/latest"))["results"]["final"]["path"]
    assert s3.get(bucket, f"{PREFIX}/{final}/model.safetensors") == contents(0, 5000)
    kept = [key for key in s3.keys(bucket) if "/checkpoints/" in key]
    assert len(kept) == 3 * 2, "old checkpoints are pruned"
    assert json.loads(s3.get(bucket, f"{PREFIX}/lease"))["released"] is True
    assert [path.name for path in one.run.iterdir() if path.name.startswith(".")] == []
    assert list((one.run / "checkpoints").glob(".upload-*")) == []
    assert one.said == []


def test_order(machine: Make, proxy: Proxy, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    for step in (1, 2, 3):
        one.commit(step)
        until(lambda step=step: proxy.names("PUT").count(f"{PREFIX}/latest") == step + 2)
    proxy.log.clear()
    one.commit(4)
    until(lambda: not any("/step-00000001/" in key for key in s3.keys(bucket)))
    told = [f"{seen.method} {seen.name.rpartition('/')[2]}{seen.query}" for seen in proxy.log if seen.method != "GET"]
    assert told[:5] == [
        "PUT metrics.jsonl",
        "PUT events.jsonl",
        "PUT state.safetensors",
        "PUT manifest.json",
        "PUT latest",
    ]
    manifest, *rest = told[5:]  # older obstore deletes one by one
    assert (manifest, rest) == ("POST delete", ["POST delete"]) or (
        manifest == "DELETE manifest.json" and "DELETE state.safetensors" in rest
    )


def test_large_files_go_in_parts(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    one = machine("a").begin()
    one.commit(1, LARGE)
    until(lambda: look(s3, bucket) == [1], 20)
    parts = [seen for seen in proxy.log if "partNumber" in seen.query]
    assert len(parts) == 3
    manifest = next(i for i, seen in enumerate(proxy.log) if seen.name.endswith("manifest.json"))
    assert proxy.log.index(parts[-1]) < manifest


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "lost", "expired"])
def test_a_fault_costs_only_time(
    fault: str, machine: Make, s3: S3, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second request for the same thing meets with it; the training sees nothing."""
    monkeypatch.setattr(trouble, "LONGEST_DELAY_SECONDS", 0.1)
    one = machine("a").begin()
    numbers: dict[str, int] = {}

    def every_second(seen: Seen) -> str | None:
        if seen.name.endswith("/lease"):
            return None
        numbers[seen.method + seen.name] = count = numbers.get(seen.method + seen.name, 0) + 1
        return fault if count % 2 else None

    proxy.fault = every_second
    one.commit(1)
    until(lambda: look(s3, bucket) == [1], 30)
    one.commit(2)
    assert one.mirror.finish(30)
    assert look(s3, bucket) == [2, 1]
    assert not one.mirror.superseded
    assert sum(seen.fault is not None for seen in proxy.log) > 5


def test_half_an_upload_is_invisible(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    one = machine("a").begin()
    one.commit(1)
    until(lambda: look(s3, bucket) == [1])
    proxy.fault = lambda seen: "cut" if "partNumber=3" in seen.query else None
    one.commit(2, LARGE)
    until(lambda: any("partNumber=3" in seen.query for seen in proxy.log), 20)
    assert not one.mirror.finish(0.5)
    assert look(s3, bucket) == [1]
    assert not any("step-00000002" in key for key in s3.keys(bucket))


def test_slow_uplink_passes_over_and_never_blocks(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    one = machine("a").begin()
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    proxy.fault = lambda seen: "slow" if seen.name.endswith("state.safetensors") else None
    longest = 0.0
    for step in range(1, 21):
        one.commit(step, told=False)
        begun = time.monotonic()
        one.mirror.committed(step)
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.05)
    assert longest < 0.1
    assert one.mirror.finish(20)
    assert look(s3, bucket)[0] == 20
    uploaded = {re.search(r"step-(\d+)", name)[1] for name in proxy.names("PUT") if "/step-" in name}
    assert 2 <= len(uploaded) < 10


def test_pruning_here_takes_nothing_from_an_upload(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    """The checkpoint in flight is long gone from the disk when its upload ends."""
    one = machine("a").begin()
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    proxy.fault = lambda seen: "late" if seen.name.endswith("step-00000001/state.safetensors") else None
    one.commit(1)
    until(lambda: any("state.safetensors" in name for name in proxy.names("PUT")))
    for step in (2, 3, 4, 5):
        one.commit(step, told=False)
    assert [path.name for path in one.checkpoints()] == ["step-00000003", "step-00000004", "step-00000005"]
    proxy.deliver.set()
    until(lambda: look(s3, bucket) == [1])


def test_trouble_is_said_once_and_its_end_too(machine: Make, proxy: Proxy, s3: S3, bucket: str) -> None:
    one = machine("a").begin(failing=0.3)
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    proxy.fault = lambda seen: "expired"
    one.commit(1)
    until(lambda: one.said)
    one.commit(2)
    time.sleep(0.5)
    assert len(one.said) == 1, one.said
    assert "403 Forbidden, ExpiredToken (the credentials have expired)" in one.said[0]
    proxy.fault = lambda seen: None
    until(lambda: len(one.said) == 2)
    assert "work again" in one.said[1]
    until(lambda: look(s3, bucket)[:1] == [2])


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_leaving_is_bounded(seconds: float, machine: Make, proxy: Proxy, s3: S3, bucket: str) -> None:
    """The store hangs, for uploader and lease; the machine has a few seconds left, or none."""
    one = machine("a").begin(timeout=10.0)
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    proxy.fault = lambda seen: "partition"
    one.commit(1)
    until(lambda: any(seen.fault for seen in proxy.log))
    begun = time.monotonic()
    assert one.mirror.finish(seconds) is False
    assert seconds <= time.monotonic() - begun < seconds + 1.2
    proxy.closed.set()  # lets the request go that still hangs


def test_leaving_with_no_time_lets_go_of_a_store_that_is_well(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    one.mirror.finish(0.0)
    assert json.loads(s3.get(bucket, f"{PREFIX}/lease") or b"{}")["released"] is True


def test_a_full_disk_is_no_concern_of_the_training(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine("a").begin(failing=0.0)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    one.commit(1)
    assert "No space left on device" in one.said[0]


@pytest.fixture
def copied_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On a disk without links: the threads that have copied a file."""
    names, copyfile = [], shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        names.append(threading.current_thread().name)
        copyfile(source, target)

    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    monkeypatch.setattr(shutil, "copyfile", copy)
    return names


def test_no_links_on_this_disk(machine: Make, copied_by: list[str], s3: S3, bucket: str) -> None:
    """Then there are copies, and the training waits for none."""
    one = machine("a").begin()
    one.commit(1)
    until(lambda: look(s3, bucket) == [1])
    assert copied_by == ["pitstop-store"] * 2


@pytest.mark.parametrize("gone", ["all", "state.safetensors", "manifest.json"])
def test_no_links_and_pruned_before_it_was_copied(
    gone: str, machine: Make, copied_by: list[str], s3: S3, bucket: str, proxy: Proxy
) -> None:
    """Or half of it, at this very moment: it is passed over, and the next one goes up."""
    one = machine("a").begin(failing=0.0)
    until(lambda: s3.get(bucket, f"{PREFIX}/latest"))
    proxy.fault = lambda seen: "late" if seen.name.endswith("step-00000001/state.safetensors") else None
    one.commit(1)
    until(lambda: any(seen.fault for seen in proxy.log))
    one.commit(2)
    (pruned,) = (one.run / "checkpoints").glob("step-00000002")
    shutil.rmtree(pruned) if gone == "all" else (pruned / gone).unlink()
    proxy.deliver.set()
    until(lambda: look(s3, bucket) == [1])
    until(lambda: one.mirror._pending is None)
    one.commit(3)
    until(lambda: look(s3, bucket) == [3, 1])
    assert not any("step-00000002" in key for key in s3.keys(bucket))
    assert one.said == []
    assert one.mirror.finish(5)
    assert list((one.run / "checkpoints").glob(".upload-*")) == []
