"""An S3 server for all tests; a proxy, a bucket and machines for each."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3 import S3, Proxy
from store.machines import Machine

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with S3() as server:
        yield server


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before the server; the environment leads to it."""
    with s3.proxy() as front:
        for name, value in front.environment.items():
            monkeypatch.setenv(name, value)
        yield front


@pytest.fixture
def bucket(s3: S3) -> str:
    """A new one."""
    name = f"bucket-{next(_numbers)}"
    s3.make_bucket(name)
    return name


@pytest.fixture
def machine(tmp_path: Path, proxy: Proxy, bucket: str) -> Iterator[Callable[[str], Machine]]:
    """`machine("a")`: the machine called a, with a disk of its own; a machine called so before has the same disk."""
    made = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, f"s3://{bucket}/runs"))
        return made[-1]

    yield make
    proxy.fault = lambda seen: None
    proxy.deliver.set()
    for one in made:
        if hasattr(one, "mirror"):
            one.mirror.finish(0.0)
            one.mirror.join(10)
        if hasattr(one, "lease"):
            one.lease.release()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("pitstop-")] == []
