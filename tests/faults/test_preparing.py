"""Asked to stop while a download or a compilation is under way: it ends in time, and leaves neither orphan nor loss."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from faults.harness import TESTS, Job, Run, assert_same
from faults.holding import held, steps, stopped, until
from faults.test_launch import Launched, launch  # noqa: F401  (a fixture)
from faults.test_terminal import ends, start, words

sys.path.insert(0, str(TESTS / "notice"))
from metadata_server import IDLE, ITEM, MetadataServer

FIRST_BYTES = 300_000
CIFAR_BYTES = 170_498_071
ENDS_SECONDS = 15.0  # of the 25 that are left after a signal
CIFAR10 = TESTS.parent / "recipes" / "cifar10.py"


class Slow:
    """A server that sends the first bytes of an archive, and then one every tenth of a second."""

    def __init__(self) -> None:
        self.asked: list[int] = []  # where each request begins
        self.over = threading.Event()
        slow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
                slow.asked.append(begin)
                self.send_response(206 if begin else 200)
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{CIFAR_BYTES - 1}/{CIFAR_BYTES}")
                self.send_header("Content-Length", str(CIFAR_BYTES - begin))
                self.end_headers()
                with contextlib.suppress(OSError):  # the other side has ended: it was to
                    self.wfile.write(bytes(FIRST_BYTES))
                    while not slow.over.wait(0.1):
                        self.wfile.write(b"x")

            def log_message(self, *args: object) -> None: ...

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/file"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()  # waits for the handlers


@pytest.fixture
def server() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.close()


@pytest.fixture
def cloud() -> Iterator[MetadataServer]:
    with MetadataServer("gcp") as server:
        yield server


def arriving(part: Path) -> bool:
    """Some bytes are there, of a download that goes on."""
    return part.exists() and part.stat().st_size >= FIRST_BYTES - (1 << 18)


def ended_in_time(job: Job, begun: float) -> None:
    job.wait(ENDS_SECONDS)
    assert time.monotonic() - begun < ENDS_SECONDS, job.text
    assert set(job.codes) == {75}, job.text
    assert "Traceback" not in job.text


def downloads(run: Run) -> Path:
    return run.folder / "data" / "cifar-10-python.tar.gz.part"


def asks_for_the_rest(run: Run, server: Slow, kept: int) -> None:
    """So does the next attempt, which is asked to stop as well."""
    before = len(server.asked)  # 2, where a rank took over from one that had left before it
    job = run.start()
    until(lambda: len(server.asked) > before, job)
    begun = time.monotonic()
    job.signal(signal.SIGTERM)
    ended_in_time(job, begun)
    assert (server.asked[0], server.asked[before:]) == (0, [kept])
    assert downloads(run).stat().st_size >= kept


@pytest.mark.parametrize(("ranks", "who"), [(1, "signal"), (3, "signal"), (3, "cloud")])
def test_a_download(ranks: int, who: str, server: Slow, cloud: MetadataServer, tiny: Callable[..., Run]) -> None:
    """One rank downloads, the others wait for it. What has arrived is kept, and the next attempt asks for the rest."""
    urls = {"CIFAR10_URL": server.url, "PITSTOP_METADATA_URL": cloud.url, "no_proxy": "127.0.0.1"}
    run = tiny("--cloud", "gcp", recipe=CIFAR10, ranks=ranks, **urls)
    job = run.start()
    until(lambda: arriving(downloads(run)), job)
    begun = time.monotonic()
    if who == "signal":
        job.signal(signal.SIGTERM)
    else:  # only rank 0 is told, whether or not it is the one that downloads; the launcher ends the others
        cloud.answers[ITEM["gcp"]] = (200, "TRUE")
    ended_in_time(job, begun)
    stopped(run, "now")
    cloud.answers[ITEM["gcp"]] = IDLE["gcp"]
    asks_for_the_rest(run, server, downloads(run).stat().st_size)


@pytest.mark.slow
def test_a_download_under_pitstop_launch(
    launch: Callable[..., Launched],  # noqa: F811
    server: Slow,
    tiny: Callable[..., Run],
) -> None:
    flags, urls = ("--cloud", "none"), {"CIFAR10_URL": server.url, "no_proxy": "127.0.0.1"}
    run = tiny(*flags, recipe=CIFAR10, **urls)
    one = launch(run.folder, program=CIFAR10, words=("--name", "r", "--tracker", "none", *flags), **urls)
    one.until(lambda: arriving(downloads(run)))
    begun = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 75, one.text
    assert time.monotonic() - begun < ENDS_SECONDS
    stopped(run, "now")
    asks_for_the_rest(run, server, downloads(run).stat().st_size)


# Of torch 2.6: its compiler passes over torch's own modules, and a classifier is one.
compiles = pytest.mark.skipif(version("torch").startswith("2.6."), reason="no classifier alone is compiled")


@compiles
@pytest.mark.parametrize(("ranks", "apart"), [(1, 0.0), (3, 0.0), (3, 0.5)])
def test_a_compilation(ranks: int, apart: float, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """In the first step of an attempt that goes on at step 5: no step is computed, the checkpoint is as it was. So too
    where the signals of the ranks come `apart` seconds: the first that leaves breaks the sum for which others wait.
    """
    run = tiny("--save_every", "5steps", ranks=ranks, COMPILE="alone")
    run.killed("commit:8")
    before, done = run.checkpoints(), steps(run)
    with held(run, "compiling:5") as job:
        begun = time.monotonic()
        for rank in range(ranks):
            job.signal(signal.SIGTERM, rank)
            time.sleep(apart)
        ended_in_time(job, begun)
    assert stopped(run, "now")["step"] == 5
    assert (run.checkpoints(), steps(run)) == (before, done)
    run.finish()
    assert_same(run, clean(ranks=ranks))


@compiles
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_compilation_for_the_evaluation(ranks: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """After the first step there is something to lose: it ends, and the run stops at the step where it stood."""
    run = tiny("--save_every", "1000steps", ranks=ranks, COMPILE="alone")
    with held(run, "compiling:9") as job:
        job.signal(signal.SIGTERM)
        assert not job.over.wait(0.3), job.text
    assert set(job.wait().codes) == {75}, job.text
    assert stopped(run, "now")["step"] == 9
    assert run.checkpoints() == ["step-00000009"]
    run.finish()
    assert_same(run, clean(ranks=ranks))


@pytest.mark.slow
def test_compiling_processes_are_not_left(tiny: Callable[..., Run]) -> None:
    """For a GPU inductor compiles in processes of its own. A minute's work is under way there, and not waited for."""
    run = tiny()
    file, said = run.folder / "hold", run.folder / "out.txt"
    process = start(run, words([]), COMPILE="60", HOLD_AT="compiling:0", HOLD=str(file))
    try:
        deadline = time.monotonic() + 120
        while not Path(f"{file}.held").exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        workers = family(process.pid)
        assert workers, "inductor has no process of its own"
        Path(f"{file}.go").touch()
        time.sleep(0.2)  # it waits for the result
        process.terminate()
        assert process.wait(ENDS_SECONDS) == 75, said.read_text()
    finally:
        process.kill()
        process.wait()
    for pid in workers:
        ends(pid, ENDS_SECONDS)
    stopped(run, "now")


def family(pid: int) -> set[int]:
    """The descendants of a process, by the process table."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
