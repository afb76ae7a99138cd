"""One machine at a time: handing over, taking over, and what a holder that was cut off can still do (nothing)."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from s3 import S3, Proxy
from store.machines import PREFIX, Machine, look, until

from pitstop.errors import RunInUseError
from pitstop.store import Bucket, Lease

Make = Callable[[str], Machine]
TTL = 1.2


def names_of(machine: Machine) -> str:
    return f"{machine.attempt:04d}-{machine.lease.owner}"


def test_a_holder_that_let_go_is_not_waited_for(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    one.commit(5)
    assert one.mirror.finish(10)
    begun = time.monotonic()
    two = machine("b").begin()
    assert time.monotonic() - begun < 2
    assert two.brought == 5
    assert two.said == []


def test_a_holder_that_lives_is_left_alone(machine: Make, s3: S3, bucket: str) -> None:
    """Longer than its time to live: it is renewed. The second names the first and touches nothing."""
    one = machine("a").begin(ttl=TTL)
    one.commit(5)
    two = machine("b")
    with pytest.raises(RunInUseError, match=r"is in use by \S+ \(pid \d+, since ") as refused:
        two.begin(ttl=TTL, wait=1.5 * TTL)
    assert refused.value.exit_code == 75
    assert one.lease.held
    one.commit(6)
    until(lambda: look(s3, bucket) == [6, 5])


def test_a_dead_holder_is_waited_for_once(machine: Make, s3: S3, bucket: str) -> None:
    """Its time to live, measured here: not before that, and not much later."""
    one = machine("a").begin(ttl=TTL)
    one.commit(5)
    until(lambda: look(s3, bucket) == [5])
    one.dies()
    begun = time.monotonic()
    two = machine("b").begin(ttl=TTL)
    assert TTL <= time.monotonic() - begun < TTL + 2
    assert two.brought == 5
    assert "waiting to see whether it still lives" in two.said[0]


def test_the_same_machine_does_not_wait_for_itself(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin(ttl=60)
    one.commit(5)
    until(lambda: look(s3, bucket) == [5])
    one.dies()
    begun = time.monotonic()
    again = machine("a").begin(ttl=60)
    assert time.monotonic() - begun < 2
    assert again.brought is None, "its disk has the newest"


def test_a_copy_of_the_disk_waits(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin(ttl=TTL)
    one.dies()
    token = json.loads((one.run / "lease.json").read_text())
    (one.run / "lease.json").write_text(json.dumps(token | {"boot": "another machine"}))
    begun = time.monotonic()
    machine("a").begin(ttl=TTL)
    assert time.monotonic() - begun >= TTL


def test_a_copy_beside_it_is_another(machine: Make) -> None:
    """`cp -r` on the same machine: the holder that it was copied from lives."""
    one = machine("a").begin(ttl=TTL)
    two = machine("b")
    shutil.copytree(one.run, two.run)
    with pytest.raises(RunInUseError, match="is in use by"):
        two.begin(ttl=TTL, wait=1.5 * TTL)
    assert one.lease.held


def test_a_directory_that_was_moved_is_the_same(machine: Make) -> None:
    one, two = machine("a").begin(ttl=60), machine("b")
    one.dies()
    two.run.parent.mkdir()
    one.run.rename(two.run)
    begun = time.monotonic()
    two.begin(ttl=60)
    assert time.monotonic() - begun < 2


@pytest.mark.slow
def test_partitioned_holder(machine: Make, s3: S3, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops by its own clock before anyone takes over; when the network is back it says that it was replaced."""
    cut_off = s3.proxy()
    with cut_off:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cut_off.environment["AWS_ENDPOINT_URL"])
        one = machine("a").begin(ttl=TTL, timeout=0.5)
        one.commit(5)
        until(lambda: look(s3, bucket) == [5])
        cut_off.fault = lambda seen: "partition"
        until(lambda: not one.lease.held)
        one.commit(6)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.environment["AWS_ENDPOINT_URL"])
        two = machine("b").begin(ttl=TTL)
        assert two.brought == 5
        two.commit(7)
        until(lambda: look(s3, bucket) == [7, 5])
        cut_off.fault = lambda seen: None
        until(lambda: one.lease.superseded and not one.mirror.is_alive())
        assert not one.mirror.finish(1)
        assert any("has taken over this run" in line for line in one.said)
        assert two.lease.held
        until(lambda: look(s3, bucket) == [7, 5])
        assert not any(names_of(one) in key and "step-00000006" in key for key in s3.keys(bucket))


def test_late_write_of_latest_is_refused(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    """A holder sends `latest`, is frozen, is replaced; then what it sent arrives."""
    one = machine("a").begin(ttl=TTL)
    one.commit(5)
    until(lambda: look(s3, bucket) == [5])
    proxy.fault = lambda seen: "late" if seen.method == "PUT" and seen.name.endswith("/latest") else None
    one.commit(6)
    until(lambda: any(seen.fault == "late" for seen in proxy.log))
    one.lease._stopped.set()  # frozen: no renewals, and no release
    one.lease._renew = lambda released=False: None  # type: ignore[method-assign]
    proxy.fault = lambda seen: None
    two = machine("b").begin(ttl=TTL)
    assert two.brought == 5
    two.commit(8)
    until(lambda: look(s3, bucket) == [8, 5])
    proxy.deliver.set()
    until(lambda: not one.mirror.is_alive())
    assert look(s3, bucket) == [8, 5]
    assert one.mirror.superseded
    assert any("has taken over this run" in line for line in one.said)


def test_a_renewal_that_fails_is_no_loss(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    """The network is away for less than the time to live, and answers are lost."""
    one = machine("a").begin(ttl=TTL, timeout=1.0)
    for fault in ("reset", "lost"):
        proxy.log.clear()
        proxy.fault = lambda seen, fault=fault: fault if seen.method == "PUT" and seen.name.endswith("/lease") else None
        until(lambda: any(seen.fault for seen in proxy.log))
        proxy.fault = lambda seen: None
        serial = json.loads(s3.get(bucket, f"{PREFIX}/lease"))["serial"]
        until(lambda serial=serial: json.loads(s3.get(bucket, f"{PREFIX}/lease"))["serial"] > serial)
        assert one.lease.held
        assert not one.lease.superseded
    one.commit(5)
    until(lambda: look(s3, bucket) == [5])


def test_of_many_at_once_one_gets_it(s3: S3, bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    leases: list[Lease] = []

    def start(number: int) -> None:
        run = tmp_path / str(number)
        run.mkdir()
        lease = Lease(Bucket.open(f"s3://{bucket}/runs", "r"), run, say=lambda text: None, ttl_seconds=30)
        lease.acquire(60)
        leases.append(lease)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for count in range(1, 5):
        until(lambda count=count: len(leases) == count)
        time.sleep(0.3)
        assert len(leases) == count
        leases[-1].release()
    for thread in threads:
        thread.join()
