"""`fake(body)` makes a recipe; whatever it left running is killed at the end of the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supervise.fakes import Fake


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[[str], Fake]]:
    made = []

    def make(body: str) -> Fake:
        folder = tmp_path / f"fake-{len(made)}"
        folder.mkdir()
        made.append(Fake(folder, body))
        return made[-1]

    yield make
    for one in made:
        one.kill()
