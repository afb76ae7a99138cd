"""The uploader of one attempt: checkpoints, records and results follow into the store, behind the training's back.

The order is the guarantee: records, then a checkpoint's files, its manifest last, then `latest`, and only then is what
`latest` no longer names deleted. Every attempt writes below a name of its own, so no two writers share an object.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pitstop.files import read_json
from pitstop.store.bucket import Bucket
from pitstop.store.latest import Stored
from pitstop.store.lease import Lease
from pitstop.store.private import PRIVATE, Waiting, described, linked, state_of
from pitstop.store.trouble import Conflict, StoreError, delays

MANIFEST = "manifest.json"
RECORDS = ("config.json", "metrics.jsonl", "events.jsonl", "train.log", "status.json")
RESULTS = ("best", "final")
LAST_DELAY_SECONDS = 1.0  # between tries once the attempt is ending
GRACE_SECONDS = 0.5  # for what is under way when the time is over, and again for the lease
RELEASE_SECONDS = 5.0


class _Over(Exception):
    """Nothing more may be uploaded."""


class Mirror(threading.Thread):
    """Uploads while it holds the lease; every failure is tried again, none reaches the training.

    Args:
        lease: acquired.
        attempt: its number, part of the names in the store.
        keep: how many checkpoints stay there.
        failing_seconds: for how long uploads fail before it is said.
    """

    def __init__(
        self,
        bucket: Bucket,
        run: Path,
        lease: Lease,
        *,
        attempt: int,
        keep: int,
        say: Callable[[str], None],
        failing_seconds: float = 60.0,
    ) -> None:
        super().__init__(name="pitstop-store", daemon=True)
        assert lease.claim is not None, "acquire() comes first"
        self._bucket, self._run, self._lease, self._claim = bucket, run, lease, lease.claim
        self._prefix = f"attempts/{attempt:04d}-{lease.owner}"
        self._keep, self._say, self._failing_seconds = keep, say, failing_seconds
        self._change = threading.Condition()
        self._pending: Waiting | None = None  # the newest checkpoint that waits
        self._finishing = threading.Event()
        self._abandoned = threading.Event()
        self._done = threading.Event()
        self._begun = self._complete = False
        self._sent: dict[str, tuple[Any, dict[str, Any]]] = {}  # by name: the file as it was, and what was uploaded
        self._results: dict[str, tuple[Any, dict[str, Any]]] = {}  # the same of best/ and final/, as `latest` has it
        self._uploads = 0
        self._failing_since: float | None = None
        self._failing_said = self._prune_said = False
        self._folder = run / "checkpoints"
        for leftover in self._folder.glob(PRIVATE + "*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def superseded(self) -> str:
        """The machine that has taken over this run, if one has."""
        return self._lease.superseded

    def committed(self, step: int) -> None:
        """The checkpoint of `step` is complete on disk. Returns at once; one that still waits is passed over."""
        if self._finishing.is_set() or self._done.is_set():
            return
        try:
            job = Waiting(self._folder, step)
        except OSError as error:  # a full disk; the next one may work
            self._failed(f"{self._folder}: {error.strerror}")
            return
        with self._change:
            passed_over, self._pending = self._pending, job
            self._change.notify()
        if passed_over:
            passed_over.drop()

    def finish(self, timeout_seconds: float) -> bool:
        """Uploads what is left (the last checkpoint, results, records) and lets the lease go. True if all is there.

        Whatever the store does, this takes no longer than `timeout_seconds` and a second.
        """
        deadline = time.monotonic() + timeout_seconds
        self._finishing.set()
        with self._change:
            self._change.notify()
        if self.is_alive():
            self._done.wait(timeout_seconds)
        complete = self._complete
        self._abandoned.set()
        if self.is_alive():
            self.join(GRACE_SECONDS)
        self._lease.release(min(RELEASE_SECONDS, deadline + 2 * GRACE_SECONDS - time.monotonic()))
        return complete

    def run(self) -> None:
        pause = delays()
        try:
            while not self._complete:
                with self._change:
                    self._change.wait_for(lambda: self._pending or self._finishing.is_set() or not self._begun)
                    last = self._finishing.is_set()
                    job, self._pending = self._pending, None
                try:
                    self._upload(job)
                except (StoreError, OSError, ValueError) as error:  # of the store, or of a file here
                    self._failed(str(error))
                    self._wait_again(job, next(pause))
                else:
                    self._worked()
                    self._begun, pause = True, delays()
                    self._complete = last
        except _Over:
            if self.superseded:
                self._say(f"store: {self.superseded} has taken over this run; this machine uploads no more.")
        finally:
            for leftover in self._folder.glob(PRIVATE + "*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._done.set()

    def _wait_again(self, job: Waiting | None, seconds: float) -> None:
        with self._change:
            if self._pending is None:
                self._pending, job = job, None
        if job:  # a newer one waits
            job.drop()
        if self._finishing.is_set():
            self._abandoned.wait(min(seconds, LAST_DELAY_SECONDS))
        else:
            self._finishing.wait(seconds)

    def _go_on(self) -> None:
        """Asked before each request. Raises StoreError while the lease is in doubt, _Over when it is lost."""
        if self._abandoned.is_set() or self._lease.superseded:
            raise _Over
        if not self._lease.held:
            raise StoreError(f"the lease is not renewed ({self._lease.trouble or 'this machine was asleep'})")

    def _upload(self, job: Waiting | None) -> None:
        before = self._claim.latest
        private = job.hold() if job else None
        results = self._upload_results(dict(before.results))
        self._upload_records()
        checkpoints = before.checkpoints
        if job and private and job.step not in [one.step for one in checkpoints[:1]]:
            stored = self._upload_checkpoint(job.step, private)
            earlier = [one for one in before.checkpoints if one.step < stored.step]
            checkpoints = (stored, *earlier)[: self._keep]
        self._go_on()
        try:
            self._claim.change(records=self._prefix, checkpoints=checkpoints, results=results)
        except Conflict as error:
            self._lease.lose()
            raise _Over from error
        if job:
            job.drop()
        self._sent = {name: sent for name, sent in self._sent.items() if name in RECORDS}
        self._prune()

    def _put(self, name: str, path: Path) -> dict[str, Any]:
        """Uploads a file, unless it is there already as it is now. Returns {"bytes", "sha256"}."""
        state = state_of(path)
        if name not in self._sent or self._sent[name][0] != state:
            self._go_on()
            self._sent[name] = state, self._bucket.upload(f"{self._prefix}/{name}", path, self._go_on)
        return self._sent[name][1]

    def _upload_records(self) -> None:
        for name in RECORDS:
            path = self._run / name
            if path.exists():
                self._put(name, path)

    def _upload_checkpoint(self, step: int, private: Path) -> Stored:
        name = f"checkpoints/step-{step:08d}"
        covered = int(read_json(private / MANIFEST).get("metrics_bytes", 0))
        metrics = described(self._run / "metrics.jsonl", covered)
        for path in sorted(private.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
            self._put(f"{name}/{path.name}", path)
        return Stored(f"{self._prefix}/{name}", step, metrics)

    def _upload_results(self, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """best/ and final/ where they changed, each time below a new name. Returns what `latest` will say of them."""
        for name in RESULTS:
            folder = self._run / name
            if not folder.is_dir():
                continue
            state = {path.name: state_of(path) for path in folder.iterdir()}
            if name not in self._results or self._results[name][0] != state:
                if {path.name: described(path) for path in folder.iterdir()} == known.get(name, {}).get("files"):
                    self._results[name] = state, known[name]  # an earlier attempt has uploaded it
                    continue
                private = linked(folder, self._folder)
                self._uploads += 1
                target = f"{name}-{self._uploads}"
                files = {path.name: self._put(f"{target}/{path.name}", path) for path in sorted(private.iterdir())}
                shutil.rmtree(private, ignore_errors=True)
                self._results[name] = state, {"path": f"{self._prefix}/{target}", "files": files}
            known[name] = self._results[name][1]
        return known

    def _prune(self) -> None:
        """Deletes what `latest` no longer names. What fails is tried after the next checkpoint."""
        claim = self._claim
        try:
            while claim.dropped:
                # Without conditional writes another writer may count on what is not ours: that stays.
                if self._bucket.conditional or claim.dropped[0].startswith(self._prefix):
                    claim.garbage += self._bucket.names(claim.dropped[0] + "/")
                claim.dropped.pop(0)
            self._go_on()
            self._bucket.delete([name for name in claim.garbage if name.endswith(MANIFEST)])  # whole, or not there
            self._bucket.delete(claim.garbage)
            claim.garbage.clear()
        except StoreError as error:
            if error.lasting and not self._prune_said:
                self._prune_said = True
                self._say(f"store: old checkpoints in {self._bucket.where} cannot be deleted and stay: {error}.")

    def _failed(self, why: str) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since >= self._failing_seconds and not self._failing_said:
            self._failing_said = True
            self._say(
                f"STORE: uploads to {self._bucket.where} fail for {now - self._failing_since:.0f} s by now: {why}. "
                "Training goes on, with its checkpoints on this disk only; the upload is tried again."
            )

    def _worked(self) -> None:
        if self._failing_said:
            self._say(f"store: uploads to {self._bucket.where} work again.")
        self._failing_since, self._failing_said = None, False
