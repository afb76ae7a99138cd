"""Streams whose other side is gone: real pipes, real terminals, /dev/full."""

import contextlib
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TextIO

import pytest

from pitstop.output import Sturdy, sturdy


def broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_terminal() -> TextIO:
    master, slave = os.openpty()
    os.close(master)
    return os.fdopen(slave, "w")


@pytest.mark.parametrize("make", [broken_pipe, closed_terminal])
def test_it_falls_silent(make: Callable[[], TextIO]) -> None:
    """Whatever is written then, in whichever way, and whatever was still in its buffer."""
    with make() as stream:
        output = Sturdy(stream)
        print("a line", file=output, flush=True)
        print("x" * 100_000, file=output)
        assert output.write("another") == 7
        output.writelines(["one", "two"])
        output.flush()
        os.write(output.fileno(), b"as a library does, by the descriptor")
        assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == os.devnull


def test_what_is_buffered_before_it_breaks() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        output = Sturdy(stream)
        output.write("read\n")
        output.flush()
        assert os.read(reader, 100) == b"read\n"
        output.write("never read")
        os.close(reader)
        output.flush()


def test_a_full_disk_behind_it_is_silence() -> None:
    """As a log beside the run: "the checkpoint was not saved, training goes on" must not end the training."""
    stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    for _ in range(3):
        print("a line", file=Sturdy(stream))
    stream.close()


def test_other_errors_are_errors() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    with pytest.raises(OSError, match="Invalid argument"):
        print("a line", file=Sturdy(Broken()))


def test_a_terminal_that_does_not_block_loses_a_line() -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            raise BlockingIOError

    assert Sturdy(Slow()).write("a line") == 6


def test_it_is_a_stream_in_all_else() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w", encoding="utf-8") as stream:
        output = Sturdy(stream)
        assert (output.isatty(), output.encoding, output.fileno()) == (False, "utf-8", writer)
        print("äöü", file=output, flush=True)
        assert source.readline() == "äöü\n"


def test_the_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    with contextlib.suppress(KeyError), sturdy():
        assert isinstance(sys.stdout, Sturdy)
        assert isinstance(sys.stderr, Sturdy)
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


PROGRAM = """
import os, sys
from pitstop.output import sturdy
with sturdy():
    print("a line")
    print("another", file=sys.stderr, flush=True)
    sys.stdout.flush()
os._exit(7)
"""


def run(redirections: str) -> int:
    script = f'"{sys.executable}" -c "$PROGRAM" {redirections}'
    return subprocess.run(["bash", "-c", script], env=os.environ | {"PROGRAM": PROGRAM}, check=False).returncode


def test_a_program_whose_reader_has_gone() -> None:
    assert run("> >(true) 2> >(true)") == 7


@pytest.mark.parametrize("redirections", [">&-", "2>&-"])
def test_a_program_without_output(redirections: str) -> None:
    """As a daemon may be started."""
    assert run(redirections) == 7
