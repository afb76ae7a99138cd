"""What tests share: the warm process, and runs that nobody interrupted."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import LONG_FORM, Run, Warm
from tracked import FLAGS, Tracked
from wandb_server import WandbServer

# Started by a shell with `&`, or by nohup: what tests start would inherit the deafness.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The short form leaves out what is marked as long."""
    left_out = [] if LONG_FORM else [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="session")
def _no_reports() -> None:
    """A report costs seconds: runs that tests start leave none unless they ask for it."""
    os.environ["PITSTOP_REPORT"] = "no"


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


@pytest.fixture
def tiny(warm: Warm, tmp_path: Path) -> Callable[..., Run]:
    """Makes a run of tests/tiny.py: `tiny(*flags, ranks=1, **environment)`."""
    numbers = iter(range(1000))

    def make(*flags: str, **options: object) -> Run:
        return Run(warm, tmp_path / f"run-{next(numbers)}", *flags, **options)

    return make


@pytest.fixture(scope="session")
def clean(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """The run that nobody interrupted, with the same flags; computed once a session."""
    known: dict[object, Run] = {}

    def find(*flags: str, ranks: int = 1, **env: str) -> Run:
        key = (flags, ranks, *sorted(env.items()))
        if key not in known:
            known[key] = Run(warm, tmp_path_factory.mktemp("clean"), *flags, ranks=ranks, **env)
            known[key].finish()
        return known[key]

    return find


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A W&B server."""
    with WandbServer() as server:
        yield server


@pytest.fixture
def tracked(warm: Warm, tmp_path: Path) -> Callable[..., Tracked]:
    """Makes a run that sends its rows there."""
    return lambda *flags, **env: Tracked(warm, tmp_path / "run", *FLAGS, *flags, **env)
