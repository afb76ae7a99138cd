"""One machine at a time writes a run into a store: a lease, renewed while its holder lives.

No wall clock of one machine is compared with that of another. A successor watches the lease on its own monotonic clock
and takes it over once it has not changed for its whole time to live; the holder counts itself out a quarter earlier.
And since a machine may sleep between two lines of code, the successor also rewrites `latest` (`latest.Claim`), after
which a late write of the earlier holder is refused by the store itself.
"""

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pitstop.errors import RunInUseError, UserError
from pitstop.files import boot_id, canonical_json, read_json, write_json
from pitstop.store.bucket import Bucket, Version
from pitstop.store.latest import Claim
from pitstop.store.trouble import Conflict, StoreError, StoreUnreachable, patiently

LEASE = "lease"
TOKEN = "lease.json"  # in the run directory: the lease that this very machine took last
LIMIT_BYTES = 1 << 16
TRIES_SECONDS = 30.0
LONGEST_TTL_SECONDS = 600.0
HELD = 0.75  # of its time to live, after which the holder no longer counts on it


def _place(run: Path) -> dict[str, Any]:
    """This boot of this machine, and this very directory: a copy of it, here or elsewhere, must wait."""
    return {"boot": boot_id() or platform.node(), "inode": os.stat(run).st_ino}


class Lease:
    """Taken by `acquire`, then renewed by a thread of its own until `release` or until another machine has it."""

    def __init__(self, bucket: Bucket, run: Path, *, say: Callable[[str], None], ttl_seconds: float) -> None:
        self.owner = secrets.token_hex(8)
        self.superseded = ""  # who has taken it over; then it is lost for good
        self.trouble = ""  # why the last renewal failed
        self.claim: Claim | None = None  # what `acquire` gave
        self._bucket, self._run, self._say, self._ttl = bucket, run, say, ttl_seconds
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._serial = 0
        self._version: Version | None = None
        self._until = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="pitstop-lease", daemon=True)

    @property
    def held(self) -> bool:
        """Surely: nobody else can have taken it yet, by this machine's clock."""
        return not self.superseded and time.monotonic() < self._until

    def acquire(self, wait_seconds: float = 120.0) -> Claim:
        """Takes the lease, waiting for a holder that lets go or that is seen dead (its time to live, on this clock).

        Args:
            wait_seconds: for how long a holder that lives is waited for.

        Raises:
            RunInUseError: it lives, and holds on. UserError: the store does not answer, or `latest` is damaged.
        """
        try:
            self._take(time.monotonic() + wait_seconds)
            self._thread.start()
            self.claim = patiently(lambda: Claim(self._bucket, self.owner), TRIES_SECONDS)
        except StoreError as error:
            self.release()
            kind = UserError if error.lasting else StoreUnreachable
            raise kind(f"the lease of {self._bucket.where} cannot be taken: {error}. See docs/store.md.") from error
        write_json(self._run / TOKEN, {"owner": self.owner, **_place(self._run)})
        if not self._bucket.conditional:
            self._say(
                f"store: {self._bucket.where} has no conditional writes, so its lease is advisory: nothing there keeps "
                "two machines that start this run in the same second from overwriting each other's word."
            )
        return self.claim

    def _take(self, deadline: float) -> None:
        seen: Version | None = None
        seen_at, looks = 0.0, 0
        while True:
            found = patiently(lambda: self._bucket.read(LEASE, limit_bytes=LIMIT_BYTES), TRIES_SECONDS)
            holder, version = (_parsed(found[0]), found[1]) if found else ({}, None)
            if version != seen:  # it lives, or is new to us
                seen, seen_at, looks = version, time.monotonic(), looks + 1
                if looks == 1 and not self._is_free(holder, found is None):
                    self._say(f"store: {_who(holder)} holds this run; waiting to see whether it still lives.")
            ttl = holder.get("ttl_seconds", self._ttl)
            if self._is_free(holder, found is None) or time.monotonic() - seen_at >= ttl:
                if self._took(version):
                    return
            elif looks > 1 and time.monotonic() >= deadline:
                raise RunInUseError(
                    f"{self._bucket.where} is in use by {_who(holder)}: one machine at a time continues a run. "
                    "Leave it to that one; to begin another run: --name OTHER."
                )
            else:
                time.sleep(min(1.0, ttl / 10))

    def _took(self, version: Version | None) -> bool:
        begun = time.monotonic()
        try:
            self._version = patiently(lambda: self._bucket.swap(LEASE, self._record(), version), TRIES_SECONDS)
        except Conflict:
            return False  # somebody was faster, or the holder lives after all
        self._serial += 1
        self._until = begun + HELD * self._ttl
        return True

    def _is_free(self, holder: dict[str, Any], absent: bool) -> bool:
        return absent or bool(holder.get("released")) or self._is_ours(holder)

    def _is_ours(self, holder: dict[str, Any]) -> bool:
        """Taken by an earlier process in this run directory, on this machine: it is dead, since we have its lock."""
        try:
            token = read_json(self._run / TOKEN, LIMIT_BYTES)
            return bool(holder) and bool(token == {"owner": holder.get("owner"), **_place(self._run)})
        except (OSError, ValueError):
            return False

    def _record(self, *, released: bool = False) -> bytes:
        """The lease as the next write will have it: no two are equal, so no two have the same e_tag."""
        record = {"format": 1, "owner": self.owner, "serial": self._serial + 1, "ttl_seconds": self._ttl}
        about = {"host": platform.node(), "pid": os.getpid(), "since": self._since, "released": released}
        return canonical_json(record | about).encode()

    def _keep(self) -> None:
        while not self.superseded and not self._stopped.wait(self._ttl / 4):
            self._renew()
        if not self.superseded:
            self._renew(released=True)

    def _renew(self, *, released: bool = False) -> None:
        begun = time.monotonic()
        try:
            self._version = self._swap(released=released)
        except Conflict:
            return
        except StoreError as error:
            self.trouble = str(error)  # the next one may work; `held` ends by the clock
            return
        self._serial += 1
        self.trouble = ""
        self._until = 0.0 if released else begun + HELD * self._ttl

    def _swap(self, *, released: bool) -> Version:
        """Raises Conflict after it has noted who has the lease now; StoreError."""
        data = self._record(released=released)
        try:
            return self._bucket.swap(LEASE, data, self._version)
        except Conflict as conflict:
            holder = _parsed(conflict.found[0]) if conflict.found else {}
            if conflict.found and holder.get("owner") == self.owner:  # a renewal of ours whose answer was lost
                self._version = conflict.found[1]
                return self._bucket.swap(LEASE, data, self._version)
            self.superseded = _who(holder)
            raise

    def lose(self) -> None:
        """Another writer was seen in the store: whatever the lease says, it is no longer ours."""
        with suppress(StoreError):
            found = self._bucket.read(LEASE, limit_bytes=LIMIT_BYTES)
            holder = _parsed(found[0]) if found else {}
            self.superseded = _who({} if holder.get("owner") == self.owner else holder)
        self.superseded = self.superseded or "another machine"

    def release(self, timeout_seconds: float = 5.0) -> None:
        """Lets go, so that a successor need not wait. Nothing may be written to the store afterwards.

        Args:
            timeout_seconds: for how long the store's answer is waited for; a lease that stays behind expires.
        """
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, timeout_seconds))


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another machine"
    return f"{holder.get('host')!s:.100} (pid {holder.get('pid')!s:.20}, since {holder.get('since')!s:.40})"


def _parsed(data: bytes) -> dict[str, Any]:
    """Whoever wrote it; nothing, if it is damaged: it then counts as a holder like ourselves."""
    try:
        record = dict(json.loads(data))
        ttl = float(record.pop("ttl_seconds"))
        return record | ({"ttl_seconds": ttl} if 0 < ttl <= LONGEST_TTL_SECONDS else {})
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
