"""What a tracker is told about a run, besides its rows: all of it from the run's files, none of it secret."""

import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pitstop.config import RecipeConfig
from pitstop.files import read_json, read_lines

GIT_SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """Where rows go, as the flags say; kept in events.jsonl as the event `tracker`."""

    tracker: str = "wandb"
    project: str = "pitstop"
    entity: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    artifact: bool = False

    def event(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, config: RecipeConfig) -> "Target":
        tags = tuple(tag.strip() for tag in config.wandb_tags.split(",") if tag.strip())
        where = (config.tracker, config.wandb_project, config.wandb_entity, config.wandb_group)
        return cls(*where, tags, config.wandb_artifact)

    @classmethod
    def parse(cls, event: dict[str, Any]) -> "Target":
        known = {field.name: event[field.name] for field in fields(cls) if field.name in event}
        return cls(**{**known, "tags": tuple(known.get("tags", ()))})


@dataclass(frozen=True)
class About:
    """One run.

    Attributes:
        identity: the tracker's id of it, the same in all attempts.
        config: what defines the run, and the shape of its last attempt. No flag that says where anything is.
        commit: of the repository in which the recipe lies, or nothing.
    """

    name: str
    identity: str
    program: str
    config: dict[str, Any]
    commit: str

    @classmethod
    def of(cls, run: Path) -> "About":
        """Raises OSError, ValueError or KeyError if config.json is damaged."""
        kept = read_json(run / "config.json")
        last = {event.get("event"): event for event in read_lines(run / "events.jsonl")}
        code = last.get("code", {})
        config = kept["definition"] | {"shape": last.get("start", {}).get("shape", {})}
        if code:
            config["uncommitted_changes"] = code.get("uncommitted_changes")
        program = Path(kept.get("program", "")).name
        return cls(run.name, kept["wandb_id"], program, config, code.get("commit", ""))


def target_of(run: Path) -> Target:
    """Where the run last sent its rows, or would have."""
    told = [event for event in read_lines(run / "events.jsonl") if event.get("event") == "tracker"]
    return Target.parse(told[-1] | {"tracker": "wandb"}) if told else Target()


def code_version(recipe: Path) -> dict[str, Any]:
    """The commit of the repository that the recipe lies in, and whether something is not committed; or nothing."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(recipe.parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, not ours
        return {}


def outcome(run: Path) -> dict[str, Any]:
    """How the run stands, for the tracker's summary: the result, and what it cost."""
    try:
        status = dict(read_json(run / "status.json"))
    except (OSError, ValueError, TypeError):
        return {}
    names = ("state", "step", "total_steps", "attempt", "paid_seconds", "cost", "currency", "goodput", "redone_steps")
    result = {f"result/{name}": value for name, value in (status.get("result") or {}).items()}
    return {f"run/{name}": status[name] for name in names if name in status} | result
