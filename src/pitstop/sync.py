"""`pitstop sync RUN`: sends W&B the rows of metrics.jsonl that it lacks, each once, however often it is called."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pitstop.curves import About, Rows, Target, covered_bytes, target_of, upload
from pitstop.errors import FAILED, FINISHED, PERSON_DECIDES, START_AGAIN, UserError
from pitstop.files import read_json
from pitstop.rundir import Lock
from pitstop.runs import RunFlags, flags_of

FINISH_SECONDS = 600.0
EXIT_CODES = {"never": FINISHED, "now": START_AGAIN, "person": PERSON_DECIDES}  # by what status.json says of a restart


class Sync(RunFlags):
    """Uploads to W&B what it lacks of a run, from metrics.jsonl: each row once, however often it is called, also while
    the run goes on. Rows that no checkpoint covers yet are left for later."""

    wandb_project: str = ""
    """project at W&B; default: the run's"""
    wandb_entity: str = ""
    """user or team at W&B; default: the run's"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop sync <argv>`: 0 if W&B has every row that can go out, 1 if it does not."""
    flags = flags_of(Sync, "sync", argv)
    target = target_of(flags.path)
    target = replace(target, project=flags.wandb_project or target.project, entity=flags.wandb_entity or target.entity)
    return sync(flags.path, target)


def sync(run: Path, target: Target) -> int:
    """Raises RunInUseError if another process is sending the run's rows, UserError if config.json is damaged."""
    size = covered_bytes(run)
    total = len(Rows(run / "metrics.jsonl", 0).up_to(size))
    if not total:
        print(f"{run.name}: nothing to upload yet; rows go out once a checkpoint covers them.")
        return FINISHED
    try:
        About.of(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{run / 'config.json'} is damaged, or of another pitstop ({why}): put it back.") from error
    lock = Lock(run / "curves")
    lock.path.parent.mkdir(exist_ok=True)
    lock.acquire(wait_seconds=0)
    try:
        had, has, page = upload(run, target, size, _exit_code(run), FINISH_SECONDS)
    except Exception as error:  # whatever the client raises: nothing is lost, and it may be tried again
        print(f"{run.name}: W&B cannot be used ({type(error).__name__}: {error}). Nothing is lost: try again later.")
        return FAILED
    finally:
        lock.release()
    if has < total:
        print(f"{run.name}: W&B has taken {has} of {total} rows; the same command sends the rest.")
        return FAILED
    print(f"{run.name}: W&B has all {total} rows, {max(0, total - had)} of them new: {page}")
    return FINISHED


def _exit_code(run: Path) -> int:
    """How W&B shows the run."""
    try:
        return EXIT_CODES.get(read_json(run / "status.json").get("restart"), FAILED)
    except (OSError, ValueError, AttributeError):
        return FAILED
