"""Runs as the commands of `pitstop` name them."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from pitstop.config import from_environment
from pitstop.errors import UserError
from pitstop.flags import parse
from pitstop.values import Directory


class Flags(BaseModel):
    """What every command has in common; its docstring is the command's help."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    runs_dir: Directory = from_environment("PITSTOP_RUNS_DIR", "runs")
    """where runs lie"""


class RunFlags(Flags):
    """The flags of a command that is about one run."""

    run: str
    """name of a run below --runs_dir, or path to its directory"""

    @property
    def path(self) -> Path:
        """The run's directory. Raises UserError if there is no such run."""
        return find_run(self.run, self.runs_dir)


F = TypeVar("F", bound=Flags)


def flags_of(flags: type[F], command: str, argv: Sequence[str]) -> F:
    """The flags in `argv`; a word without a flag is the run. Raises SystemExit: after the help, and for wrong flags."""
    words = ("run",) if "run" in flags.model_fields else ()
    return parse(flags, argv, words=words, program=f"pitstop {command}")


def find_run(run: str, runs_dir: Path) -> Path:
    """The directory of the run named `run` below `runs_dir`, or of the run at the path `run`.

    Raises:
        UserError: neither holds a config.json.
    """
    places = [Path(os.path.abspath(place)) for place in (runs_dir / run, Path(run).expanduser())]
    for place in places:
        if (place / "config.json").is_file():
            return place
    known = sorted(path.parent.name for path in runs_dir.glob("*/config.json"))
    near = get_close_matches(run, known, n=3, cutoff=0.4) or known[:3]
    advice = f"Did you mean: {', '.join(near)}?" if near else f"No run lies in {runs_dir}: say --runs_dir."
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"{run!r} is no run: there is no config.json in {looked}. {advice}")
