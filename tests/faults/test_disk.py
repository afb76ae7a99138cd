"""The disk is full: in the middle training goes on and says so; at the start nothing is begun."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Run, assert_same
from mounted import tmpfs

from pitstop import checkpoint


def test_full_in_the_middle(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Two saves fail, the third goes through: the bytes are the same, no row is lost."""
    run = tiny("--save_every", "4steps")
    job = run.finish(FULL_AT="6-13")
    assert job.text.count("WAS NOT SAVED") == 2, job.text
    assert "No space left on device" in job.text
    assert str(Path("runs/r/checkpoints")) in job.text
    assert "MB needed" in job.text
    assert "MB free" in job.text
    assert "the last good one is that of step 4" in job.text
    assert [event["step"] for event in run.events("save")] == [4, 16, 20, 24, 26]
    assert_same(run, clean())


def test_full_and_then_killed(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny("--save_every", "4steps")
    run.killed("step:13", FULL_AT="6-13")
    assert run.checkpoints() == ["step-00000004"]
    checkpoint.verify(run.path / "checkpoints" / "step-00000004")
    run.finish()
    assert_same(run, clean())


def test_full_three_times_in_a_row(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny("--save_every", "4steps")
    job = run.go(FULL_AT="6-100")
    assert job.text.count("WAS NOT SAVED") >= 3
    assert job.code == 76, job.text
    assert "Traceback" not in job.text
    checkpoint.verify(run.path / "checkpoints" / "step-00000004")
    assert max(row["step"] for row in run.step_log()) < 20
    run.finish()
    assert_same(run, clean())


def test_status_after_three_failures_says_that_a_person_decides(tiny: Callable[..., Run]) -> None:
    """There is room again just then: the run stops all the same, with a checkpoint."""
    run = tiny("--save_every", "4steps")
    job = run.go(FULL_AT="6-16")
    assert job.code == 76, job.text
    assert [event["step"] for event in run.events("save")] == [4, 17]
    status = run.status()
    assert (status["state"], status["restart"], status["step"]) == ("stopped", "person", 17)
    assert "3 saves in a row failed: No space left on device" in status["reason"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    with tmpfs(tmp_path / "disk", "12m") as path:
        yield path


def ballast(folder: Path, leave_bytes: int) -> Path:
    """A file that leaves so much free."""
    path, free = folder / "ballast", os.statvfs(folder)
    with open(path, "wb") as file:
        file.write(b"\x00" * max(0, free.f_bavail * free.f_bsize - leave_bytes))
    return path


def test_too_small_at_the_start(tiny: Callable[..., Run], small_disk: Path) -> None:
    run = tiny("--runs_dir", str(small_disk / "runs"), "--keep", "3")
    ballast(small_disk, 3_000_000)
    job = run.go()
    assert job.code == 2, job.text
    assert str(small_disk) in job.text
    assert "3 MB free" in job.text
    assert "needs" in job.text
    assert not run.step_log()


def test_a_disk_that_fills(tiny: Callable[..., Run], clean: Callable[..., Run], small_disk: Path) -> None:
    """A real file system without a free byte while the run goes on; then there is room again."""
    run = tiny("--runs_dir", str(small_disk / "runs"), "--save_every", "5steps", "--keep", "1")
    run.path = small_disk / "runs" / "r"
    run.killed("step:6")
    job = run.start(STEP_SECONDS="0.1")
    while len(run.step_log()) < 8:
        assert not job.over.wait(0.02), job.text
    filled = ballast(small_disk, 0)
    while "WAS NOT SAVED" not in job.text:
        assert not job.over.wait(0.02), job.text
    filled.unlink()
    job.wait()
    assert job.code == 0, job.text
    assert "No space left on device" in job.text
    assert_same(run, clean())


def test_output_on_a_full_disk(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """As a log beside the run: what is said is lost, the run is not."""
    run = tiny("--save_every", "4steps")
    job = run.start(out=Path("/dev/full"))
    job.wait()
    assert job.codes == [0]
    assert_same(run, clean())


def test_a_run_that_fits_goes_on_after_a_kill(
    tiny: Callable[..., Run], clean: Callable[..., Run], small_disk: Path
) -> None:
    """What its checkpoints take already is not asked for again."""
    run = tiny("--runs_dir", str(small_disk / "runs"), "--save_every", "5steps", "--keep", "1")
    run.path = small_disk / "runs" / "r"
    run.killed("step:18")
    ballast(small_disk, 7_000_000)  # of the 9 MB that a new run asks for
    run.finish()
    assert_same(run, clean())
