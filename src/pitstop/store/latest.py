"""`latest`, the one object that says what a store holds: which checkpoints count, the newest first, and where the run's
other files are. What it does not name does not exist for anybody: uploads that were cut, writes that came too late.
"""

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from pitstop.errors import UserError
from pitstop.files import canonical_json
from pitstop.store.bucket import Bucket, Version
from pitstop.store.trouble import Conflict, StoreError

FORMAT = 1
LATEST = "latest"
LIMIT_BYTES = 1 << 20
ATTEMPT = r"attempts/\d{4,9}-[0-9a-f]{16}"
ATTEMPT_PATH = re.compile(ATTEMPT)
CHECKPOINT_PATH = re.compile(ATTEMPT + r"/checkpoints/step-\d{8,15}")
RESULT_PATH = re.compile(ATTEMPT + r"/(best|final)-\d{1,9}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # no slash, no leading dot
SHA256 = re.compile(r"[0-9a-f]{64}")

Files = dict[str, dict[str, Any]]  # name -> {"bytes", "sha256"}


@dataclass(frozen=True)
class Stored:
    """A checkpoint that is whole in the store, and the beginning of metrics.jsonl that belongs to it."""

    path: str
    step: int
    metrics: dict[str, Any]  # {"bytes", "sha256"}

    @property
    def attempt(self) -> str:
        return self.path.partition("/checkpoints/")[0]


@dataclass(frozen=True)
class Latest:
    writer: str = ""  # the lease's owner; with `serial` it makes the bytes unique, and so the object's e_tag
    serial: int = 0
    records: str = ""  # the attempt whose events.jsonl, train.log, status.json, config.json are the newest
    checkpoints: tuple[Stored, ...] = ()  # the newest first
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # best, final -> {"path", "files"}

    def to_bytes(self) -> bytes:
        stored = [{"path": one.path, "step": one.step, "metrics": one.metrics} for one in self.checkpoints]
        record = {"format": FORMAT, "writer": self.writer, "serial": self.serial, "records": self.records}
        return canonical_json(record | {"checkpoints": stored, "results": self.results}).encode()

    def paths(self) -> list[str]:
        """Of all that comes and goes: checkpoints and results."""
        return [*(one.path for one in self.checkpoints), *(result["path"] for result in self.results.values())]

    def names(self, name: str) -> bool:
        """Does this object count?"""
        attempt = "/".join(name.split("/")[:2])
        if attempt not in {self.records, *(one.attempt for one in self.checkpoints)}:
            return any(name.startswith(result["path"] + "/") for result in self.results.values())
        if not re.match(r"(checkpoints/|best-|final-)", name[len(attempt) + 1 :]):
            return True
        return any(name.startswith(path + "/") for path in self.paths())


def parse(data: bytes) -> Latest:
    """Raises ValueError if it is not what `Latest.to_bytes` writes: what comes from a store is not trusted."""
    try:
        record = json.loads(data)
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, {FORMAT} was expected")
        checkpoints = tuple(
            Stored(_matching(CHECKPOINT_PATH, one["path"]), _natural(one["step"]), _file(one["metrics"]))
            for one in record["checkpoints"]
        )
        results = {
            name: {
                "path": _matching(RESULT_PATH, result["path"]),
                "files": {_matching(FILE_NAME, file): _file(about) for file, about in result["files"].items()},
            }
            for name, result in record["results"].items()
            if name in ("best", "final")
        }
        records = record["records"] and _matching(ATTEMPT_PATH, record["records"])
        return Latest(str(record["writer"]), _natural(record["serial"]), records, checkpoints, results)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not as pitstop writes it ({type(error).__name__}: {error})") from error


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"it names {value!r:.100}")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is no count")
    return value


def _file(about: Any) -> dict[str, Any]:
    return {"bytes": _natural(about["bytes"]), "sha256": _matching(SHA256, about["sha256"])}


def read(bucket: Bucket) -> tuple[Latest, Version | None]:
    """What the store holds; nothing, if no run was here. Raises UserError if `latest` is damaged, StoreError."""
    found = bucket.read(LATEST, limit_bytes=LIMIT_BYTES)
    return (_checked(bucket, found[0]), found[1]) if found else (Latest(), None)


def _checked(bucket: Bucket, data: bytes) -> Latest:
    try:
        return parse(data)
    except ValueError as error:
        raise UserError(
            f"{bucket.where}/{LATEST} cannot be used: {error}. Was it written by a later pitstop (pip install -U "
            "pitstop)? Else choose another --name or --store: nothing was changed there."
        ) from error


class Claim:
    """`latest` in the hands of one writer: each change succeeds only if nobody else has written it since.

    Taking it writes it anew under this writer's name, so that whatever an earlier holder still sends is refused.
    """

    def __init__(self, bucket: Bucket, writer: str) -> None:
        self._bucket, self._writer = bucket, writer
        while True:
            found, version = read(bucket)
            # Listed before the claim succeeds: what a successor of ours will write cannot be among it.
            before = bucket.names("attempts/") if bucket.conditional else {}
            self.latest = replace(found, writer=writer, serial=found.serial + 1)
            try:
                self._version = bucket.swap(LATEST, self.latest.to_bytes(), version)
                break
            except Conflict:
                continue
        self.garbage = [name for name in before if not found.names(name)]  # cut uploads, pruned attempts
        self.dropped: list[str] = []  # paths that `latest` named under this claim and no longer names

    def change(self, **changes: Any) -> None:
        """Raises Conflict: another writer has taken over. StoreError: not known to be done; may be called again, with
        what is then to be changed in `self.latest`."""
        changed = replace(self.latest, **changes)
        if changed == self.latest:
            return
        changed = replace(changed, serial=self.latest.serial + 1)
        try:
            version = self._bucket.swap(LATEST, changed.to_bytes(), self._version)
        except Conflict as conflict:
            found = _checked(self._bucket, conflict.found[0]) if conflict.found else Latest()
            if not conflict.found or found.writer != self._writer:
                raise
            self._is(found, conflict.found[1])  # written by us, as nobody else has this name
            raise StoreError("the answer to an earlier request was lost") from conflict
        self._is(changed, version)

    def _is(self, now: Latest, version: Version) -> None:
        self.dropped += [path for path in self.latest.paths() if path not in now.paths()]
        self.latest, self._version = now, version
