"""What `pitstop launch` and a recipe tell each other: exit codes and signals do not come through accelerate."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pitstop.files import write_json

OUTCOME = "PITSTOP_OUTCOME"  # environment: a file that does not exist yet, for the recipe's word
GRACE = "PITSTOP_GRACE_SECONDS"  # environment: what a signal leaves the recipe


def tell_launcher(**word: Any) -> None:
    """Writes where the run is, and in the end how the attempt ended, if there is somebody to read it."""
    if file := os.environ.get(OUTCOME):
        with suppress(OSError):  # it then takes the process for one that died without a word
            write_json(Path(file), {"pid": os.getpid(), **word})
