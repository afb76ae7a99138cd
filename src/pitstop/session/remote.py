"""The run's copy in a bucket: fetched before anything is read, kept up to date behind the training."""

from collections.abc import Callable
from pathlib import Path

from pitstop import checkpoint, store
from pitstop.rundir import RunDirectory

FINISH_SECONDS = 300.0  # for the last uploads; other ranks wait meanwhile, not for ever

LEASE_SECONDS = 30.0  # a fresh machine waits so long after one that died without a word


class Remote:
    """Only rank 0 has one, and only with --store. `fetch`, then `start`, then `committed` after each checkpoint."""

    def __init__(self, url: str, run: RunDirectory, *, keep: int, say: Callable[[str], None]) -> None:
        self._run, self._keep, self._say = run, keep, say
        self._bucket = store.Bucket.open(url, run.path.name, say=say)
        self._lease: store.Lease | None = None
        self._mirror: store.Mirror | None = None

    def fetch(self) -> None:
        """Takes the lease, and brings the newest state of the run. The run's lock is held.

        Raises:
            UserError: another machine is at this run, or the store does not answer.
        """
        self._lease = store.Lease(self._bucket, self._run.path, say=self._say, ttl_seconds=LEASE_SECONDS)
        self._lease.acquire()
        step = store.bring_back(self._bucket, self._run.path, verify=_step, say=self._say)
        if step is not None:
            self._say(f"store: brought the checkpoint of step {step}")

    def start(self, attempt: int) -> None:
        """From here on files go up."""
        assert self._lease is not None, "fetch() comes first"
        self._mirror = store.Mirror(
            self._bucket, self._run.path, self._lease, attempt=attempt, keep=self._keep, say=self._say
        )
        self._mirror.start()

    def committed(self, step: int) -> None:
        if self._mirror:
            self._mirror.committed(step)

    def taken_over(self) -> str:
        """Why this machine should stop, or nothing."""
        by = self._mirror.superseded if self._mirror else ""
        return f"{by} has taken over this run" if by else ""

    def finish(self, seconds_left: float | None) -> None:
        """Waits, bounded, until all is up, and lets the run go for other machines."""
        if self._mirror:
            if not self._mirror.finish(FINISH_SECONDS if seconds_left is None else min(FINISH_SECONDS, seconds_left)):
                self._say("store: not everything is up; the same command on this disk uploads the rest")
        elif self._lease:
            self._lease.release(5.0 if seconds_left is None else min(5.0, seconds_left))
        self._mirror = self._lease = None


def _step(path: Path) -> int:
    """Of a checkpoint that is whole. Not loaded yet: one that ends whoever loads it is counted where that is done."""
    return int(checkpoint.compare(path)[0]["step"])
