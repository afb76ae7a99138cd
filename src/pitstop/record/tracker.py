"""W&B beside the training, never in its way: the real client, in a thread of its own."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

INIT_SECONDS = 15
FINISH_SECONDS = 30

Row = dict[str, Any]


def _mode() -> str:
    """online with an account, else offline; it never asks. WANDB_MODE decides if it is set."""
    import netrc

    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
            return "online"
    return "offline"


class Tracker(threading.Thread):
    """Sends rows of metrics.jsonl to one W&B run, whatever the number of attempts.

    The training only puts rows into a queue. A server that is down, slow or logged out costs it nothing: the run is
    then written offline, below `folder`, and one line says how to upload it.

    Args:
        identity: W&B's run id, the same in all attempts.
        say: prints one line.
    """

    def __init__(
        self, *, project: str, name: str, identity: str, config: Row, folder: Path, say: Callable[[str], None]
    ) -> None:
        super().__init__(name="pitstop-wandb", daemon=True)
        self._start = {"project": project, "name": name, "id": identity, "config": config, "dir": str(folder)}
        self._folder, self._say = folder, say
        self._rows: queue.Queue[Row | int] = queue.Queue()
        self._run: Any = None

    def send(self, rows: list[Row]) -> None:
        for row in rows:
            self._rows.put(row)

    def finish(self, exit_code: int, seconds_left: float | None = None) -> None:
        """Waits, bounded, until W&B has what it was given; no longer than the time that is left, if it is short."""
        if self.is_alive():
            self._rows.put(exit_code)
            most = FINISH_SECONDS + INIT_SECONDS
            self.join(timeout=most if seconds_left is None else min(most, seconds_left))

    def run(self) -> None:
        """The thread: the client is started, then fed until an exit code comes."""
        try:
            self._run = self._begin()
            while not isinstance(row := self._rows.get(), int):
                values = {f"{row['kind']}/{key}": value for key, value in row.items() if key not in ("kind", "step")}
                self._run.log(values | {"global_step": row["step"]})
            self._run.finish(exit_code=row)
        except Exception as error:  # whatever the client raises: it costs a line, and no training
            self._say(f"W&B gave up ({type(error).__name__}: {error}): metrics.jsonl has everything")

    def _begin(self) -> Any:
        import wandb

        mode = _mode()
        try:
            run = self._init(wandb, mode)
        except (
            Exception
        ) as error:  # its own errors, OSError, pydantic's, those of its service: offline needs none of them
            self._say(f"W&B cannot be reached ({type(error).__name__}): this run is recorded offline")
            wandb.teardown()  # its service would still hold the run's id
            mode = "offline"
            run = self._init(wandb, mode)
        if mode == "offline":
            self._say(f"W&B is offline; to upload: wandb sync {self._folder}/wandb/offline-run-*")
        elif run.url:
            self._say(f"W&B: {run.url}")
        return run

    def _init(self, wandb: Any, mode: str) -> Any:
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_transaction_log_flush_interval=1,  # 15 s by default, lost at a kill (measured)
            x_file_stream_transmit_interval=5,
        )
        run = wandb.init(**self._start, mode=mode, resume="allow", settings=settings, reinit="create_new")
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        return run
