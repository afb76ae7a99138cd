"""One of several ranks cannot go on: the others, who wait for it in a sum that will never be, hear of it and end."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, and documented

LOOK_SECONDS = 0.5
STORE_SECONDS = 10.0  # for one question to the store
HEARD_SECONDS = 2.0  # until the others have heard


def _key() -> str:
    """Of this attempt: torchrun, which may keep the store, counts those that it starts again."""
    return f"pitstop/alarm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


class Alarm(threading.Thread):
    """Listens, on each rank, at the store where the ranks have met: it can be reached from every machine of the group,
    while only rank 0 sees the run directory. A rank that is waited for in vain would else cost the others the group's
    time-out (see `place.GROUP_SECONDS`), or 30 s of a launcher's patience.

    Args:
        heard: called in this thread with what another rank has rung; must end the process.
    """

    def __init__(self, heard: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(name="pitstop-alarm", daemon=True)
        self._heard = heard
        self._stopped = threading.Event()
        self._store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=STORE_SECONDS),
        )

    def ring(self, note: dict[str, Any]) -> None:
        """Tells all other ranks, and returns when they have heard."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):  # whoever kept the store is gone, and the group with it
            self._store.set(_key(), json.dumps(note))
            time.sleep(HEARD_SECONDS)

    def run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                if not self._store.check([_key()]):
                    continue
                note = json.loads(self._store.get(_key()))
            except RuntimeError:  # the store is gone: the ranks part
                return
            self._heard(note)

    def stop(self) -> None:
        self._stopped.set()
        self.join(STORE_SECONDS)
