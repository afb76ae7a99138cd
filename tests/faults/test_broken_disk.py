"""The disk breaks in the middle: EIO, or read-only from one moment to the next. Training goes on, and says so."""

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Job, Run, assert_same
from faults.holding import until
from faults.saving import NAME

from pitstop import checkpoint

SAVES = ("--save_every", "4steps", "--keep", "2")
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG = 2  # what is not on the disk is lost, and so is the journal


def command(*words: object) -> bool:
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


def good(run: Run) -> list[int]:
    """Steps of the checkpoints; all of them whole."""
    names = [name for name in run.checkpoints() if NAME.fullmatch(name)]
    return [checkpoint.verify(run.path / "checkpoints" / name).step for name in names]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """mount(8), undone at the end."""
    paths = []

    def mount(*words: object) -> None:
        if os.geteuid() != 0 or not command("mount", *words):
            pytest.skip("file systems cannot be mounted here")
        paths.append(words[-1])

    yield mount
    for path in reversed(paths):
        assert command("umount", path)


def on_a_disk_of_its_own(run: Run, mounted: Callable[..., None]) -> Path:
    """Its checkpoints: nothing else is open there, so that the disk can be made read-only."""
    folder = run.path / "checkpoints"
    folder.mkdir(parents=True)
    mounted("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    return folder


def make_read_only(folder: Path, job: Job) -> None:
    while not command("mount", "-o", "remount,ro", folder):  # while a save is writing it is busy
        assert not job.over.wait(0.01), job.text


def test_read_only_for_a_while(
    tiny: Callable[..., Run], clean: Callable[..., Run], mounted: Callable[..., None]
) -> None:
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    folder = on_a_disk_of_its_own(run, mounted)
    job = run.start()
    until(lambda: run.events("save"), job)
    make_read_only(folder, job)
    until(lambda: job.text.count("WAS NOT SAVED") >= 1, job)
    assert command("mount", "-o", "remount,rw", folder)
    job.wait()
    assert job.code == 0, job.text
    assert "Read-only file system" in job.text
    saved = {event["step"] for event in run.events("save")}
    failed = {event["step"] for event in run.events("save_failed")}
    assert failed
    assert not saved & failed
    assert saved | failed == {4, 8, 12, 16, 20, 24, 26}
    assert_same(run, clean())


def test_read_only_for_good(tiny: Callable[..., Run], clean: Callable[..., Run], mounted: Callable[..., None]) -> None:
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    folder = on_a_disk_of_its_own(run, mounted)
    job = run.start()
    until(lambda: run.events("save"), job)
    make_read_only(folder, job)
    job.wait()
    assert job.code == 76, job.text
    assert "Traceback" not in job.text
    assert job.text.count("WAS NOT SAVED") >= 3
    assert run.status()["restart"] == "person"
    assert "3 saves in a row failed: Read-only file system" in run.status()["reason"]
    acknowledged = [event["step"] for event in run.events("save")]
    assert good(run)[-1] == acknowledged[-1]
    assert command("mount", "-o", "remount,rw", folder)
    run.finish()
    assert_same(run, clean())


@contextlib.contextmanager
def injected(job: Job, what: str) -> Iterator[None]:
    """Calls of the living process fail, by strace; at the end it lets go."""
    words = ["strace", "-f", "-o", "/dev/null", "-p", str(job.pids[0]), "-e", f"trace={what.partition(':')[0]}"]
    with subprocess.Popen([*words, "-e", f"inject={what}"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "attached" in process.stderr.readline()
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
def test_no_save_whose_fsync_failed(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The bytes were all taken, and the disk could not keep them: that was no save."""
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    job = run.start()
    until(lambda: run.events("save"), job)
    with injected(job, "fsync:error=EIO"):
        before = good(run)
        until(lambda: job.text.count("WAS NOT SAVED") >= 2, job)
        assert good(run) == before
    job.wait()
    assert job.code == 0, job.text
    assert "Input/output error" in job.text
    saved = {event["step"] for event in run.events("save")}
    failed = {event["step"] for event in run.events("save_failed")}
    assert not saved & failed
    assert saved | failed == {4, 8, 12, 16, 20, 24, 26}
    assert_same(run, clean())


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_call_that_fails_for_good(call: str, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    job = run.start()
    until(lambda: run.events("save"), job)
    with injected(job, f"{call}:error=EIO"):
        job.wait()
    assert job.code == 76, job.text
    assert "Traceback" not in job.text
    assert max(good(run)) == max(event["step"] for event in run.events("save")) < 12
    run.finish()
    assert_same(run, clean())


def ext4(folder: Path, mounted: Callable[..., None]) -> Path:
    """A file system in a file: it can be broken like a disk."""
    image, path = folder / "image", folder / "disk"
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    if not command("mkfs.ext4", "-q", image):
        pytest.skip("there is no mkfs.ext4 here")
    mounted("-o", "loop,errors=remount-ro", image, path)
    return path


def shut_down(disk: Path) -> None:
    """As if it had been pulled out: every call fails with EIO."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG))
    finally:
        os.close(descriptor)


def trip(disk: Path) -> None:
    """As if the kernel had found an error in it: read-only from now on."""
    device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {disk} " in line)
    (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("test")


def broken(how: Callable[[Path], None], tmp_path: Path, run: Run, mounted: Callable[..., None]) -> Job:
    """An attempt whose whole run directory breaks after a save, and is mended when it has ended."""
    disk = ext4(tmp_path, mounted)
    run.flags = (*run.flags, "--runs_dir", str(disk / "runs"))
    run.path = disk / "runs" / "r"
    job = run.start()
    until(lambda: run.events("save"), job)
    with contextlib.suppress(OSError):  # a write to trigger_fs_error says at once what it has done
        how(disk)
    job.wait()
    assert command("umount", disk)
    assert command("mount", "-o", "loop", tmp_path / "image", disk)
    return job


@pytest.mark.slow
@pytest.mark.parametrize("how", [shut_down, trip])
def test_the_whole_run_directory(
    how: Callable[[Path], None],
    tmp_path: Path,
    tiny: Callable[..., Run],
    clean: Callable[..., Run],
    mounted: Callable[..., None],
) -> None:
    """The attempt ends, and never says that all was well; what was saved before is there."""
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    job = broken(how, tmp_path, run, mounted)
    assert job.code in (1, 76), job.text
    assert max(good(run)) >= 4
    again = run.finish()
    assert_same(run, clean())
    assert "IS BAD" not in again.text


@pytest.mark.slow
@pytest.mark.parametrize("how", [shut_down, trip])
def test_the_whole_run_directory_in_order(
    how: Callable[[Path], None], tmp_path: Path, tiny: Callable[..., Run], mounted: Callable[..., None]
) -> None:
    """Nothing can be written any more, not even why: the exit code says it."""
    run = tiny(*SAVES, STEP_SECONDS="0.05")
    job = broken(how, tmp_path, run, mounted)
    assert job.code == 76, job.text
    assert "Traceback" not in job.text
    assert job.text.count("WAS NOT SAVED") >= 3
