"""The short form of `make storm`, and what a process holds on to while it saves."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import storm
from faults.harness import Job, Run


@pytest.mark.slow
def test_storm(tmp_path: Path) -> None:
    """Fifteen restarts. That each run ended with the bits of an undisturbed one, the storm checks itself."""
    tally, counts = storm.storm(tmp_path, restarts=15, seed=1)
    assert tally.restarts == 15
    assert tally.runs >= 1
    assert tally.save_kills >= 3
    assert max(tally.descriptors) < 30
    assert all(after <= before for before, after in counts.values()), storm.table(tally, counts, 0)


def held(job: Job) -> tuple[int, int]:
    """(descriptors, threads) of a living process."""
    process = Path(f"/proc/{job.pids[0]}")
    return len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


def test_saves_leave_nothing_in_the_process(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "1steps", STEP_SECONDS="0.03")
    job, looks = run.start(), []
    for step in (4, 24):
        while len(run.step_log()) < step:
            assert not job.over.wait(0.005), job.text
        looks.append(held(job))
    job.wait()
    assert len(run.events("save")) == 26
    more = [later - earlier for earlier, later in zip(*looks, strict=True)]
    assert max(more) <= 3, f"after 20 more saves, one of which may be under way: {looks}"
