"""A W&B server, and runs that send their rows there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Warm
from faults.tracked import FLAGS, Tracked
from wandb_server import WandbServer


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def tracked(warm: Warm, tmp_path: Path) -> Callable[..., Tracked]:
    return lambda *flags, **env: Tracked(warm, tmp_path / "run", *FLAGS, *flags, **env)
