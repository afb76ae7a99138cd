"""Opening a store: what is wrong is named before anything is paid. And the store that is a folder."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s3 import S3, Proxy
from store.machines import Machine, look, until

from pitstop.errors import FAILED, UserError
from pitstop.store import Bucket, StoreUnreachable, trouble
from pitstop.store.connect import _bucket_in_host
from pitstop.store.trouble import Conflict


@pytest.mark.parametrize(
    "url",
    ["", "runs", "/mnt/runs", "ftp://host/x", "s3:///x", "s3://k:v@bucket/x", "s3://bucket/x?key=1", "file://host/x"],
)
def test_a_wrong_url(url: str) -> None:
    with pytest.raises(UserError, match="expected s3://BUCKET/FOLDER"):
        Bucket.open(url, "r")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_wrong_name(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a folder"):
        Bucket.open("file:///tmp/x", name)


def test_no_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pitstop\[store\]'"):
        Bucket.open("s3://bucket/x", "r")


def test_obstore_is_not_imported_without_a_store() -> None:
    code = "import sys, pitstop.store; print('obstore' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_no_such_bucket(proxy: Proxy) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"no such bucket. Tried: bucket nowhere at http://127.0.0.1:\d+") as error:
        Bucket.open("s3://nowhere/x", "r")
    assert error.value.exit_code == 2
    assert time.monotonic() - begun < 5


def test_wrong_credentials(proxy: Proxy, bucket: str) -> None:
    proxy.fault = lambda seen: "expired"
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"403 Forbidden, ExpiredToken .*AWS_ACCESS_KEY_ID from") as error:
        Bucket.open(f"s3://{bucket}/x", "r")
    assert error.value.exit_code == 2
    assert "test" not in str(error.value), "the key itself is not shown"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("fault", ["503", "partition"])
def test_it_does_not_answer(fault: str, proxy: Proxy, bucket: str) -> None:
    proxy.fault = lambda seen: fault
    begun = time.monotonic()
    with pytest.raises(StoreUnreachable, match=r"503|timed out") as error:
        Bucket.open(f"s3://{bucket}/x", "r", timeout_seconds=1, tries_seconds=2)
    assert error.value.exit_code == FAILED, "what `pitstop launch` tries again"
    assert 1 < time.monotonic() - begun < 4


class Clock:
    """Stands still but for those who sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("away_seconds", [50.0, 70.0])
def test_a_network_that_is_late(
    away_seconds: float, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, for a minute, and that is said once."""
    clock, said = Clock(), []
    monkeypatch.setattr(trouble, "time", clock)
    proxy.fault = lambda seen: "reset" if clock.now < away_seconds else None
    if away_seconds < 60:
        assert Bucket.open(f"s3://{bucket}/x", "r", say=said.append).conditional
    else:
        with pytest.raises(StoreUnreachable):
            Bucket.open(f"s3://{bucket}/x", "r", say=said.append)
        assert 54 <= clock.now <= 60
    assert len(said) == 1, said
    assert f"s3://{bucket}/x does not answer (connection cut); trying for 60 s" in said[0]


def test_a_download_that_hangs_hears_a_signal(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    """The machine is taken while it fetches: the request may hang for two minutes, the process may not."""

    class Taken(Exception):
        pass

    def taken(number: int, frame: object) -> None:
        raise Taken

    store = Bucket.open(f"s3://{bucket}/x", "r")
    store.write("thing", b"12345")
    proxy.fault = lambda seen: "partition"
    before = signal.signal(signal.SIGUSR1, taken)
    sender = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    begun = time.monotonic()
    try:
        with pytest.raises(Taken):
            store.download("thing", tmp_path / "thing", 5)
    finally:
        signal.signal(signal.SIGUSR1, before)
        sender.join()
        proxy.closed.set()  # lets the request go that still hangs
    assert time.monotonic() - begun < 5
    until(lambda: not [one for one in threading.enumerate() if one.name == "pitstop-download"])


def test_the_check_leaves_nothing(s3: S3, proxy: Proxy, bucket: str) -> None:
    assert Bucket.open(f"s3://{bucket}/x", "r").conditional
    assert s3.keys(bucket) == []


def test_a_store_that_ignores_conditions_is_found_out(proxy: Proxy, bucket: str, machine: object) -> None:
    """Some S3-compatible ones take If-Match and write all the same."""
    proxy.drop_conditions = True
    one = machine("a").begin()  # type: ignore[operator]
    assert not one.bucket.conditional
    assert "lease is advisory" in one.said[0]
    one.commit(5)
    assert one.mirror.finish(10)
    assert machine("b").begin().brought == 5  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_swap(kind: str, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    store = Bucket.open(f"s3://{bucket}/x" if kind == "s3" else tmp_path.as_uri(), "r")
    assert store.conditional == (kind == "s3")
    first = store.swap("thing", b"1", None)
    second = store.swap("thing", b"2", first)
    for stale in (None, first):
        with pytest.raises(Conflict) as conflict:
            store.swap("thing", b"3", stale)
        assert conflict.value.found == (b"2", second)
    store.swap("thing", b"2", first)  # its answer was lost, it is asked again: what is there is what was wanted
    assert (store.read("thing", limit_bytes=10) or (b"",))[0] == b"2"


def test_a_folder_as_a_store(tmp_path: Path) -> None:
    url = (tmp_path / "store with space").as_uri().replace("%20", " ")
    one = Machine(tmp_path / "a", url).begin(ttl=1)
    assert "lease is advisory" in one.said[0]
    for step in (1, 2, 3, 4):
        one.commit(step, 6 << 20)
        until(
            lambda step=step: (
                one.mirror._claim.latest.checkpoints[:1] and one.mirror._claim.latest.checkpoints[0].step == step
            )
        )
    one.finished()
    assert one.mirror.finish(10)
    kept = sorted(path.parent.name for path in (tmp_path / "store with space").rglob("manifest.json"))
    assert kept == ["step-00000002", "step-00000003", "step-00000004"]
    two = Machine(tmp_path / "b", url).begin(ttl=1)
    assert two.brought == 4
    assert (two.run / "final" / "model.json").exists()
    two.commit(5)
    three = Machine(tmp_path / "c", url)
    with pytest.raises(UserError, match="is in use by"):
        three.begin(ttl=1, wait=1)
    two.dies()
    assert three.begin(ttl=1).brought == 5
    assert three.mirror.finish(10)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://oss-cn-hangzhou.aliyuncs.com", "https://b.oss-cn-hangzhou.aliyuncs.com"),
        ("https://b.oss-cn-hangzhou.aliyuncs.com", "https://b.oss-cn-hangzhou.aliyuncs.com"),
        ("https://cos.ap-shanghai.myqcloud.com", "https://b.cos.ap-shanghai.myqcloud.com"),
        ("https://tos-s3-cn-beijing.volces.com", "https://b.tos-s3-cn-beijing.volces.com"),
        ("http://127.0.0.1:9000", None),
        ("https://aliyuncs.com.example.org", None),
    ],
)
def test_bucket_in_the_host_name(endpoint: str, host: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert _bucket_in_host("b").get("endpoint") == host


@pytest.mark.slow
def test_kill_at_any_instant(s3: S3, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    """kill -9 of an uploading machine, again and again; each time another machine finds something whole."""
    program = Path(__file__).with_name("machines.py")
    env = {**os.environ, **proxy.environment, "PYTHONPATH": str(program.parents[1])}
    newest = 0
    for number in range(6):
        command = [sys.executable, str(program), str(tmp_path / str(number)), f"s3://{bucket}/runs", "300000", "0.4"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            begun = int(process.stdout.readline().split()[1])
            assert begun >= newest, "what was there was found"
            time.sleep(0.07 * number + 0.15)
            process.send_signal(signal.SIGKILL)
        found = look(s3, bucket)
        assert not found or found[0] >= newest
        newest = found[0] if found else 0
    assert newest > 6
