"""The process beside the training that talks to a tracker: nothing that a client does, or suffers, is the training's.

`python -m pitstop.curves` is started by `Recorder` and reads lines of JSON: first what to do; then {"covered": bytes of
metrics.jsonl}, again and again; then {"finish": exit code}. It answers {"online": page, "rows": number} once,
{"failed": why}, and {"done": whether all was taken}. When its parent is gone it leaves at once.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pitstop.curves.about import Target
from pitstop.curves.other_run import OtherRun
from pitstop.curves.rows import Rows
from pitstop.curves.wandb_run import WandbRun, forget_logs, mark_reached, write_offline
from pitstop.errors import FAILED, FINISHED
from pitstop.rundir import Lock

LOCK_SECONDS = 10.0  # for the process of an attempt that was killed just now
BEGIN_SECONDS = 20.0  # for the tracker to answer: more than a client's own patience
Command = dict[str, Any]


class Talk:
    """Lines to the parent. One word ends the process."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def tell(self, **message: object) -> None:
        try:
            print(json.dumps(message), file=self._out, flush=True)
        except OSError:  # nobody is there any more
            os._exit(FAILED)

    def leave(self, **message: object) -> NoReturn:
        """At once: a client's own clean-up may hang."""
        self.tell(**message)
        os._exit(FAILED if "failed" in message else FINISHED)


def listen(commands: "queue.SimpleQueue[Command]") -> None:
    for line in sys.stdin:
        commands.put(json.loads(line))
    os._exit(FAILED)


def watch(parent: int) -> None:
    """A loader worker may hold the other end of the pipe longer than the training lives."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(FAILED)


def mirror(order: Command, commands: "queue.SimpleQueue[Command]", talk: Talk) -> None:
    """Rows go out as they are covered, until the word to finish comes."""
    run, target = Path(order["run"]), Target.parse(order["target"])
    patience = threading.Timer(BEGIN_SECONDS, lambda: talk.leave(failed=f"no answer in {BEGIN_SECONDS:.0f} s"))
    patience.daemon = True
    patience.start()
    client: WandbRun | OtherRun
    if target.tracker == "wandb":
        forget_logs(run)
        client = WandbRun(
            run, target, mode="online", folder=run, watched=order["pid"], finish_seconds=order["finish_seconds"]
        )
        mark_reached(run)
    else:
        client = OtherRun(run, target)
    patience.cancel()
    talk.tell(online=client.url, rows=client.has)
    rows = Rows(run / "metrics.jsonl", client.has)
    while "finish" not in (command := commands.get()):
        client.send(rows.up_to(command["covered"]))
    try:
        client.finish(command["finish"])
    except TimeoutError:
        talk.leave(done=False)
    if target.tracker == "wandb":
        forget_logs(run)


def offline(order: Command, commands: "queue.SimpleQueue[Command]") -> None:
    covered = 0
    while "finish" not in (command := commands.get()):
        covered = command["covered"]
    run, target = Path(order["run"]), Target.parse(order["target"])
    write_offline(run, target, covered, command["finish"], order["finish_seconds"])


def main() -> None:
    talk = Talk(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what a client prints is not for the parent
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to everybody: it is the parent that decides
    os.nice(10)  # the training comes first
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(commands,), daemon=True).start()
    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
    order = commands.get()
    lock = Lock(Path(order["run"]) / "curves")
    try:
        lock.acquire(LOCK_SECONDS)
        if order["mode"] == "offline":
            offline(order, commands)
        else:
            mirror(order, commands, talk)
    except Exception as error:  # whatever a client raises costs one line, and no training
        talk.leave(failed=f"{type(error).__name__}: {error}")
    talk.leave(done=True)


if __name__ == "__main__":
    main()
