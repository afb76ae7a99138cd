"""Trackers that accelerate knows, through its own classes; W&B has a recorder of ours."""

import hashlib
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pitstop.curves.about import About, Target
from pitstop.curves.rows import Row, values
from pitstop.errors import UserError
from pitstop.files import read_json, write_json

PACKAGES = {  # any one of these
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "swanlab": ("swanlab",),
    "mlflow": ("mlflow",),
}
NOT_AT_MLFLOW = re.compile(r"[^\w/.\- :]")  # in the name of a figure, such as the accuracy of the class C++
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def require(tracker: str) -> None:
    """Raises UserError if what `--tracker` needs is not installed."""
    packages = PACKAGES.get(tracker, ())
    if not packages:
        return
    if not any(find_spec(package) for package in packages):
        raise UserError(f"--tracker {tracker} needs the package {packages[0]}: pip install {packages[0]}")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if tracker not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--tracker {tracker} needs a newer accelerate: pip install -U accelerate")


class OtherRun:
    """The run at TensorBoard, trackio, SwanLab or MLflow. They cannot be asked how many rows they have: the number that
    they surely have is kept in curves/<tracker>.json. So after a kill -9 rows may be sent again, with the same step and
    the same values, and none is missing. TensorBoard's files are ours: each attempt writes them anew.

    Raises:
        Exception: whatever the tracker raises.
    """

    def __init__(self, run: Path, target: Target) -> None:
        for name in [name for name in os.environ if name in LAUNCHER or name.startswith("ACCELERATE_")]:
            del os.environ[name]  # accelerate would wait here for the other ranks
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)
        self._kept = run / "curves" / f"{target.tracker}.json"
        self._kept.parent.mkdir(exist_ok=True)
        if target.tracker == "tensorboard":
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
            self._kept.unlink(missing_ok=True)
        state: dict[str, Any] = read_json(self._kept) if self._kept.exists() else {"rows": 0, "id": None}
        self.has: int = state["rows"]
        self.url = ""
        self._is_mlflow = target.tracker == "mlflow"
        about = About.of(run)
        arguments = _arguments(run, target, about, state["id"])
        self._tracker: Any = LOGGER_TYPE_TO_CLASS[target.tracker](**arguments)
        if hasattr(self._tracker, "start"):  # older ones begin when they are made
            self._tracker.start()
        info = getattr(self._tracker.tracker, "info", None)
        self._id = getattr(info, "run_id", None)  # MLflow's, to continue it
        if not self.has:
            self._tracker.store_init_configuration(_flat(about.config))
            self._keep()

    def _keep(self) -> None:
        write_json(self._kept, {"rows": self.has, "id": self._id})

    def send(self, rows: list[Row]) -> None:
        for row in rows:
            sent = {name: value for name, value in values(row).items() if isinstance(value, int | float)}
            sent.pop("_timestamp", None)
            if self._is_mlflow:
                sent = {NOT_AT_MLFLOW.sub("_", name): value for name, value in sent.items()}
            self._tracker.log(sent, step=row["step"])
        self.has += len(rows)
        if rows and self._is_mlflow:  # the others write in threads of theirs: lost at a kill (seen)
            self._keep()

    def finish(self, exit_code: int) -> None:
        self._tracker.finish()
        self._keep()


def _arguments(run: Path, target: Target, about: About, kept: str | None) -> dict[str, Any]:
    """Of accelerate's class: what makes each tracker continue the run that it has."""
    if target.tracker == "tensorboard":
        return {"run_name": "tensorboard", "logging_dir": str(run)}
    if target.tracker == "mlflow":
        return {"experiment_name": target.project, "run_id": kept, "run_name": about.name}
    if target.tracker == "swanlab":
        identity = hashlib.sha256(about.identity.encode()).hexdigest()[:21]  # of the length that it wants
        where = {"experiment_name": about.name, "id": identity, "logdir": str(run / "swanlab")}
        return {"run_name": target.project, "resume": "allow", **where}
    assert target.tracker == "trackio", target.tracker
    return {"run_name": target.project, "name": about.name, "resume": "allow"}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries by dotted names; what is neither text nor a number as text."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | int | float) else str(value)
    return flat
