"""The way back: what a machine that is behind the store fetches before it looks at its own disk."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pitstop.errors import UserError
from pitstop.files import checkpoint_steps, fsync_directory, read_json, require_space, set_aside, sha256, write_atomic
from pitstop.store.bucket import Bucket
from pitstop.store.latest import FILE_NAME, Latest, Stored, read
from pitstop.store.trouble import StoreError, StoreUnreachable, patiently

TRIES_SECONDS = 60.0
JSON_BYTES, LINES_BYTES = 1 << 20, 1 << 30  # of a record; a larger one is not ours
RECORDS = {"config.json": JSON_BYTES, "status.json": JSON_BYTES, "events.jsonl": LINES_BYTES, "train.log": LINES_BYTES}
MOST_FILES = 1000  # of a checkpoint

Verify = Callable[[Path], int]
Say = Callable[[str], None]


def bring_back(bucket: Bucket, run: Path, *, verify: Verify, say: Say) -> int | None:
    """Fetches the newest checkpoint that verifies, if the store has a newer one than this disk. Returns its step.

    With it come the metrics that it covers, config.json, status.json, train.log; best/ and final/ too if this disk has
    none. Where this disk is ahead, its files stay. events.jsonl is always put together from both, so that no paid hour
    is forgotten. Called with both the lease and the run's lock held, before anything of the run is read.

    Args:
        verify: reads a checkpoint directory named step-... and returns its step. ValueError or OSError: it is bad;
            UserError: a person must look, nothing older is tried.

    Raises:
        UserError: another run has this name in the store, `latest` is damaged, or this disk is too small;
            StoreUnreachable: the store does not answer.
    """
    try:
        latest, _ = patiently(lambda: read(bucket), TRIES_SECONDS)
        if not latest.records:
            return None
        with _stage(run) as stage:
            _fetch_records(bucket, latest.records, stage)
            _refuse_another_run(bucket, run / "config.json", stage / "config.json")
            _merge_events(run / "events.jsonl", stage / "events.jsonl")
            stored = _newest(bucket, latest, run, stage, verify, say)
            fresh = stored is not None or not (run / "config.json").exists()
            _place_records(run, stage, fresh)
            # Only now: a status that says "finished" is believed before anything else is looked at.
            _place_results(bucket, latest, run, stage, fresh, say)
            if stored:
                _place_checkpoint(run, stage / _name(stored))
        return stored.step if stored else None
    except StoreError as error:
        kind = UserError if error.lasting else StoreUnreachable
        raise kind(f"the run cannot be fetched from {bucket.where}: {error}. See docs/store.md.") from error


@contextmanager
def _stage(run: Path) -> Iterator[Path]:
    """Where all is put before anything is touched; under a name that is cleared at a start if a kill leaves it."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    stage = run / f".tmp-store-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _fetch_records(bucket: Bucket, attempt: str, stage: Path) -> None:
    sizes = patiently(lambda: bucket.names(attempt + "/"), TRIES_SECONDS)
    for name, limit in RECORDS.items():
        size = sizes.get(f"{attempt}/{name}")
        if size is not None:
            if size > limit:
                raise StoreError(f"{attempt}/{name} has {size} bytes, more than the {limit} it may have", lasting=True)
            bucket.download(f"{attempt}/{name}", stage / name, size)


def _refuse_another_run(bucket: Bucket, here: Path, there: Path) -> None:
    """Two runs that only share a name must not be mixed. The same run, begun twice with the same flags, may be."""
    if not here.exists() or not there.exists():
        return
    try:
        mine, theirs = read_json(here), read_json(there)
        same = any(mine[key] == theirs[key] for key in ("wandb_id", "definition"))
    except (ValueError, KeyError, TypeError):
        return  # a damaged one is for `Attempt` to judge
    if not same:
        raise UserError(
            f"{bucket.where} holds another run than {here.parent}, begun with other flags at {theirs.get('begun')}: "
            "choose another --name, or another --store."
        )


def _lines(path: Path) -> list[bytes]:
    """Those that are whole."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _merge_events(here: Path, there: Path) -> None:
    """Both histories in one: each line that only this disk has stays behind the line that it stood behind."""
    mine, theirs = _lines(here), _lines(there)
    shared = set(theirs)
    extra: dict[bytes, list[bytes]] = {}
    anchor = b""
    for line in mine:
        if line in shared:
            anchor = line
        else:
            extra.setdefault(anchor, []).append(line)
    merged = extra.pop(b"", [])
    for line in theirs:
        merged += [line, *extra.pop(line, [])]
    if merged != mine:
        write_atomic(here, b"".join(line + b"\n" for line in merged))


def _newest(bucket: Bucket, latest: Latest, run: Path, stage: Path, verify: Verify, say: Say) -> Stored | None:
    """Fetches the first of the store's that is newer than all here that verify; None if this disk has the newest."""
    found = checkpoint_steps(run / "checkpoints")[::-1]
    for stored in latest.checkpoints:
        while found and found[-1][0] >= stored.step:
            if _is_good(*found.pop(), verify):
                return None
        try:
            _fetch(bucket, stored, stage, verify)
            return stored
        except UserError:
            raise
        except (ValueError, FileNotFoundError) as error:
            shutil.rmtree(stage / _name(stored), ignore_errors=True)
            (stage / "metrics.jsonl").unlink(missing_ok=True)
            say(f"CHECKPOINT {_name(stored)} IN {bucket.where} IS BAD AND NOT USED: {error}. The one before is tried.")
    return None


def _is_good(step: int, path: Path, verify: Verify) -> bool:
    try:
        return verify(path) == step
    except UserError:
        raise
    except (ValueError, OSError):
        return False  # named and set aside when the run is restored


def _name(stored: Stored) -> str:
    return stored.path.rpartition("/")[2]


def _fetch(bucket: Bucket, stored: Stored, stage: Path, verify: Verify) -> None:
    """Raises ValueError or FileNotFoundError if it is not whole, StoreError, UserError if there is no space."""
    sizes = {name[len(stored.path) + 1 :]: size for name, size in _names(bucket, stored.path).items()}
    if not 0 < len(sizes) <= MOST_FILES or not all(map(FILE_NAME.fullmatch, sizes)):
        raise ValueError(f"its files there are {sorted(sizes)!r:.200}")
    require_space(stage, sum(sizes.values()) + stored.metrics["bytes"], f"{_name(stored)} from the store")
    folder = stage / _name(stored)
    folder.mkdir()
    for name, size in sizes.items():
        bucket.download(f"{stored.path}/{name}", folder / name, size)
    fsync_directory(folder)
    step = verify(folder)
    if step != stored.step:
        raise ValueError(f"it is that of step {step}")
    metrics = stage / "metrics.jsonl"
    bucket.download(f"{stored.attempt}/metrics.jsonl", metrics, stored.metrics["bytes"])
    if sha256(metrics.read_bytes()) != stored.metrics["sha256"]:
        raise ValueError("the metrics.jsonl that belongs to it is not what was written: its SHA-256 is another")


def _names(bucket: Bucket, path: str) -> dict[str, int]:
    return patiently(lambda: bucket.names(path + "/"), TRIES_SECONDS)


def _place_records(run: Path, stage: Path, fresh: bool) -> None:
    """All but status.json. metrics.jsonl is there only if a checkpoint comes with it."""
    log, staged = run / "train.log", stage / "train.log"
    if staged.exists() and (not log.exists() or log.stat().st_size < staged.stat().st_size):
        os.replace(staged, log)
    for name in ("metrics.jsonl", "config.json"):
        if fresh and (stage / name).exists():
            os.replace(stage / name, run / name)
    fsync_directory(run)


def _place_results(bucket: Bucket, latest: Latest, run: Path, stage: Path, fresh: bool, say: Say) -> None:
    """best/, final/ and then status.json, which must not say more than is there."""
    placed = []
    for name, result in latest.results.items():
        if not fresh and (run / name).exists():
            continue
        try:
            _fetch_result(bucket, result, stage / name)
        except (ValueError, FileNotFoundError) as error:
            say(f"{name}/ IN {bucket.where} IS BAD AND NOT USED: {error}.")
            continue
        if (run / name).exists():
            os.rename(run / name, stage / f"old-{name}")
        os.rename(stage / name, run / name)
        placed.append(name)
    staged = stage / "status.json"
    believed = "final" in placed or (fresh and not _says_finished(staged))
    if believed and staged.exists():
        os.replace(staged, run / "status.json")
    fsync_directory(run)


def _fetch_result(bucket: Bucket, result: dict[str, Any], folder: Path) -> None:
    require_space(folder.parent, sum(about["bytes"] for about in result["files"].values()), "the result in the store")
    folder.mkdir()
    for name, about in result["files"].items():
        bucket.download(f"{result['path']}/{name}", folder / name, about["bytes"])
        if sha256((folder / name).read_bytes()) != about["sha256"]:
            raise ValueError(f"{name} is not what was written: its SHA-256 is another")
    fsync_directory(folder)


def _says_finished(status: Path) -> bool:
    try:
        return bool(json.loads(status.read_bytes()).get("state") == "finished")
    except (OSError, ValueError, AttributeError):
        return True  # damaged: not believed


def _place_checkpoint(run: Path, staged: Path) -> None:
    """The last thing: until now the store was ahead, and a kill would only have made the next start fetch it again."""
    target = run / "checkpoints" / staged.name
    if target.exists():  # the one here is bad
        set_aside(target)
    os.rename(staged, target)
    fsync_directory(target.parent)
