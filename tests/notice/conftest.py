"""A watch of a cloud that is a server here, fast, with all that it said."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from metadata_server import MetadataServer, Seen

from pitstop import notice


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Seen]]:
    """`start(server, **changes)` watches `server` as its cloud, changes being made to the provider."""
    running: list[notice.Watch] = []

    def begin(server: MetadataServer, **changes: Any) -> Seen:
        monkeypatch.setenv("PITSTOP_METADATA_URL", server.url)
        provider = notice.find(server.cloud)
        assert provider is not None
        seen = Seen()
        provider = replace(provider, **({"every_seconds": 0.01, "patience_seconds": 30.0} | changes))
        seen.watch = notice.Watch(provider, notify=seen.notices.append, unreachable=seen.unreachable.append)
        running.append(seen.watch)
        seen.watch.start()
        return seen

    yield begin
    for watch in running:
        watch.stop()
        assert not watch.is_alive()
