"""The weights that a run has left in best/ and final/, as the commands that use them name them. No torch."""

from pathlib import Path
from typing import Literal

from pitstop.errors import UserError
from pitstop.rundir import RunDirectory
from pitstop.runs import RunFlags


class TrainedFlags(RunFlags):
    """The flags of a command that uses the weights of one run."""

    which: Literal["auto", "best", "final"] = "auto"
    """the weights: best, final, or auto: best if the run has them, else final"""

    @property
    def weights(self) -> Path:
        """best/ or final/ of the run. Raises UserError: no such run, or no such weights."""
        return find_weights(self.path, self.which)


def find_weights(run: Path, which: str) -> Path:
    """The directory with model.safetensors and model.json.

    Raises:
        UserError: the run has not got there; it says how far it is and what to do.
    """
    for name in ("best", "final") if which == "auto" else (which,):
        if (run / name / "model.json").is_file():
            return run / name
    status = RunDirectory(run).status()
    state = status.get("state", "not begun")
    wanted = "neither best/ nor final/" if which == "auto" else f"no {which}/"
    others = [name for name in ("best", "final") if (run / name / "model.json").is_file()]
    if others:
        advice = f"it has {others[0]}/: say --which {others[0]}"
    elif state == "running":
        advice = f"final/ comes at its end: look at it with pitstop attach {run}; if it is dead, give its command again"
    elif state == "finished":
        advice = "it was finished with them: bring them back, or pitstop archive it and train anew"
    else:
        advice = "final/ comes at its end: give the command that began it again, it continues"
    step = f" at step {status.get('step')} of {status.get('total_steps')}" if "step" in status else ""
    raise UserError(f"{run} has {wanted} yet (it is {state}{step}); {advice}.")
