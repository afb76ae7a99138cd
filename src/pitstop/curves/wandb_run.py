"""W&B as a mirror of metrics.jsonl: its row i is row i of the file, whatever the number of attempts."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Literal, cast

from pitstop.curves.about import About, Target, outcome
from pitstop.curves.rows import Row, Rows, values
from pitstop.errors import FINISHED, START_AGAIN
from pitstop.files import new_directory, read_json, read_lines

INIT_SECONDS = 8.0  # the client waits twice as long (measured): for the account, and for what the run has
ANSWER_SECONDS = 30.0  # of one upload that hangs, until it is tried again


class WandbRun:
    """The run at W&B, by the real client: opened, fed in order, finished.

    Nothing gives the client a step of its own (`step=`): its counter is the number of the row. After a restore it asks
    the server how many rows it has; `has` is the first that is missing.

    Args:
        folder: where the client writes its own files.
        watched: process whose use of the machine is recorded; 0: nobody's.
        finish_seconds: at most, for the last uploads.

    Raises:
        Exception: whatever the client raises: its own errors, OSError, pydantic's, those of its service.
    """

    def __init__(
        self,
        run: Path,
        target: Target,
        *,
        mode: Literal["online", "offline"],
        folder: Path,
        watched: int = 0,
        finish_seconds: float,
    ) -> None:
        import wandb

        about = About.of(run)
        self._run, self._target, self._online = run, target, mode == "online"
        self._wandb: Any = wandb
        client = wandb.init(
            project=target.project,
            entity=target.entity or None,
            group=target.group or None,
            tags=list(target.tags) or None,
            name=about.name,
            id=about.identity,
            dir=str(folder),
            mode=mode,
            resume="allow",
            settings=_settings(about, watched, finish_seconds),
            reinit="create_new",
        )
        self._client = cast(Any, client)
        self._client.config.update(about.config, allow_val_change=True)  # another attempt may have another shape
        self._client.define_metric("global_step")
        self._client.define_metric("*", step_metric="global_step")
        self.has: int = self._client.starting_step
        self.url: str = self._client.url or ""

    def send(self, rows: list[Row]) -> None:
        for row in rows:
            self._client.log(values(row) | self._media(row))

    def _media(self, row: Row) -> Row:
        """Images that a row names, {"media": {name: [{"path", "caption"}]}}, paths from the run's directory: they are
        part of the row, never a row of their own. One that is not there any more is left out."""
        shown = {}
        for name, images in row.get("media", {}).items():
            there = [image for image in images if (self._run / image["path"]).is_file()]
            shown[f"{row['kind']}/{name}"] = [
                self._wandb.Image(str(self._run / image["path"]), caption=image.get("caption")) for image in there
            ]
        return {name: images for name, images in shown.items() if images}

    def finish(self, exit_code: int) -> None:
        """Raises TimeoutError if W&B has not taken everything in time."""
        self._client.summary.update(outcome(self._run))
        if exit_code == START_AGAIN:
            self._client.mark_preempting()
        final = self._run / "final"
        if self._online and self._target.artifact and exit_code == FINISHED and final.is_dir():
            artifact = self._wandb.Artifact(self._run.name, type="model")
            artifact.add_dir(str(final))
            self._client.log_artifact(artifact)  # the same content again is no new version
        self._client.finish(exit_code=exit_code)


def _settings(about: About, watched: int, finish_seconds: float) -> Any:
    """Of the client: in bounded time, without a word on the terminal, and nothing sent that was not asked for."""
    import wandb

    return wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_git=True,  # it would look where the process is, not where the recipe is, and send the remote's URL
        disable_code=True,
        git_commit=about.commit or None,
        program=about.program,
        x_disable_stats=not watched,
        x_disable_meta=not watched,  # a machine that only uploads is not the one that trained
        x_stats_pid=watched or os.getpid(),
        x_transaction_log_flush_interval=1,  # 15 s by default, lost at a kill (measured)
        x_file_stream_transmit_interval=2,
        x_file_stream_timeout_seconds=ANSWER_SECONDS,
        x_file_stream_retry_wait_max_seconds=ANSWER_SECONDS,
    )


def reached(run: Path) -> bool:
    """Has W&B rows of this run, as far as this disk or the run's own events can tell?"""
    synced = any((run / "wandb").glob("offline-run-*/*.synced"))  # by `wandb sync`
    return synced or _mark(run).exists() or any(e.get("event") == "wandb" for e in read_lines(run / "events.jsonl"))


def _mark(run: Path) -> Path:
    return run / "curves" / "reached"


def mark_reached(run: Path) -> None:
    """From here on W&B is the one to ask: what was written for `wandb sync` would double what it has."""
    _mark(run).touch()
    for folder in (run / "wandb").glob("offline-run-*"):
        shutil.rmtree(folder, ignore_errors=True)


def forget_logs(run: Path) -> None:
    """Deletes the client's own logs of online attempts: `wandb sync` would send again what W&B has. The rows are in
    metrics.jsonl. The caller holds the lock."""
    for log in (run / "wandb").glob("run-*/*.wandb"):
        log.unlink(missing_ok=True)


def write_offline(run: Path, target: Target, size_bytes: int, exit_code: int, finish_seconds: float) -> None:
    """One offline run with all rows, for a plain `wandb sync`; it replaces the one of the attempt before, at once.

    Not for a run of which W&B has something already: only `pitstop sync` knows what is missing.
    """
    if reached(run):
        return
    place = run / "wandb" / ".client"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    client = WandbRun(run, target, mode="offline", folder=place, finish_seconds=finish_seconds)
    client.send(Rows(run / "metrics.jsonl", 0).up_to(size_bytes))
    client.finish(exit_code)
    kept = read_json(run / "config.json")
    begun = "".join(c for c in str(kept.get("begun", "")) if c.isdigit())[:14].ljust(14, "0")
    (made,) = place.glob("wandb/offline-run-*")
    with new_directory(run / "wandb" / f"offline-run-{begun[:8]}_{begun[8:]}-{kept['wandb_id']}") as folder:
        for item in made.iterdir():
            item.rename(folder / item.name)
    shutil.rmtree(place, ignore_errors=True)


def upload(run: Path, target: Target, size_bytes: int, exit_code: int, finish_seconds: float) -> tuple[int, int, str]:
    """(rows that W&B had, rows that it has now, its page), after it was sent what it lacked.

    Raises:
        Exception: see WandbRun. TimeoutError: it did not take everything in time.
    """

    def opened() -> WandbRun:
        return WandbRun(run, target, mode="online", folder=run, finish_seconds=finish_seconds)

    client = opened()
    mark_reached(run)
    had, missing = client.has, Rows(run / "metrics.jsonl", client.has).up_to(size_bytes)
    client.send(missing)
    client.finish(exit_code)
    if missing:  # asked again, since an upload that was refused ends without an error
        client = opened()
        client.finish(exit_code)
    with contextlib.suppress(OSError):
        forget_logs(run)
    return had, client.has, client.url
