"""A warm process: imports everything once and forks a child for each rank of each job.

Importing torch, timm and accelerate costs seconds, a fork milliseconds. The process itself never computes: a fork after
OpenMP has made its threads hangs. Jobs come as lines of JSON on stdin, `{"id", "argv", "env", "cwd", "ranks", "out"}`;
answers go to stdout, `{"id", "pids"}` and later `{"id", "codes"}` (negative: a signal). When a rank dies the others are
ended as a launcher would: killed with it, or asked by SIGTERM and then killed where it left by itself with an error.
"""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
LEAVING_SECONDS = 1.0  # ranks that leave together do not do so in one instant


def import_everything() -> None:
    """What a recipe imports."""
    for name in ("accelerate", "safetensors.torch", "sklearn.datasets", "timm", "torch.nn.parallel", "torchvision"):
        importlib.import_module(name)
    for name in ("accumulate", "augment", "data", "evaluate", "flags", "models", "optim", "session"):
        importlib.import_module(f"pitstop.{name}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ranks_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """As torchrun sets it, for Accelerate on a CPU. One process alone is told of enough others to take one thread: two
    threads of a process that shares its cores wait for each other, a hundred times slower."""
    if ranks == 1:
        return {"LOCAL_WORLD_SIZE": str(os.cpu_count())}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def run(argv: list[str], env: dict[str, str], cwd: str, out: str) -> int:
    """The program argv[0] as __main__; its exit status."""
    null, output = os.open(os.devnull, os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, descriptor in enumerate((null, output, output)):
        os.dup2(descriptor, target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class Job:
    """The ranks of one program."""

    def __init__(self, request: dict) -> None:
        self.id = request["id"]
        self.codes: dict[int, int] = {}
        self.ask_at = self.end_at = None
        self.pids = []
        port = free_port()
        for rank in range(request["ranks"]):
            env = request["env"] | ranks_environment(rank, request["ranks"], port)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = run(request["argv"], env, request["cwd"], request["out"])
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            self.pids.append(pid)

    def signal(self, number: int) -> None:
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def ended(self, pid: int, code: int) -> None:
        self.codes[pid] = code
        if code < 0:
            self.signal(signal.SIGKILL)
        elif code > 0 and self.end_at is None:
            self.ask_at = time.monotonic() + LEAVING_SECONDS
            self.end_at = self.ask_at + GRACE_SECONDS

    def tick(self) -> None:
        if self.ask_at and time.monotonic() > self.ask_at:
            self.ask_at = None
            self.signal(signal.SIGTERM)
        if self.end_at and time.monotonic() > self.end_at:
            self.signal(signal.SIGKILL)


def say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def reap(jobs: list[Job]) -> None:
    """Collects children that have ended."""
    while jobs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        job = next(job for job in jobs if pid in job.pids)
        job.ended(pid, os.waitstatus_to_exitcode(status))
        if len(job.codes) == len(job.pids):
            jobs.remove(job)
            say(id=job.id, codes=[job.codes[pid] for pid in job.pids])


def main() -> None:
    import_everything()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends it and, through their terminal, its children
    say(ready=os.getpid())
    jobs: list[Job] = []
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.005 if jobs else 1.0)
        if readable:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                job = Job(json.loads(line))
                jobs.append(job)
                say(id=job.id, pids=job.pids)
        for job in jobs:
            job.tick()
        reap(jobs)
    for job in jobs:
        job.signal(signal.SIGKILL)


if __name__ == "__main__":
    main()
