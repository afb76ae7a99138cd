"""What is started: the recipe itself, or `accelerate launch` where there are several processes."""

import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pitstop.errors import UserError

GPUS = Path("/proc/driver/nvidia/gpus")
SHUTDOWN_MARGIN_SECONDS = 30  # torchrun's own deadline comes after ours, so that one clock decides
SIMPLE_LAUNCHER = {  # what accelerate's simple_launcher sets where no flag and no config file says otherwise
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}


@dataclass(frozen=True)
class Command:
    """A program with its words and its whole environment."""

    argv: tuple[str, ...]
    env: dict[str, str]
    is_launcher: bool  # the recipe is a child of it


def value_of(name: str, words: Sequence[str]) -> str | None:
    """What the recipe's own flag --name is given, by the rules of `pitstop.flags`."""
    spellings = (f"--{name}", f"--{name.replace('_', '-')}")
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in spellings:
            return value if equals else next(iter(words[index + 1 : index + 2]), None)
    return None


def visible_gpus(env: Mapping[str, str], gpus: Path = GPUS) -> int:
    """NVIDIA GPUs that torch is going to see, without asking it: its import takes seconds."""
    listed = env.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        entries = [entry.strip() for entry in listed.split(",")]
        bad = (index for index, entry in enumerate(entries) if entry in ("", "-1"))  # CUDA stops reading there
        return next(bad, len(entries))
    if shutil.which("nvidia-smi"):
        try:
            done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            raise UserError("nvidia-smi does not answer: the driver hangs. Reboot, or say --processes") from None
        if done.returncode == 0:
            return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def build(
    recipe: str, words: Sequence[str], *, processes: str, config_file: str, grace_seconds: float, env: Mapping[str, str]
) -> Command:
    """The command that trains: `processes` is "auto" or a number.

    One process is started as accelerate's simple_launcher would, but without it in between: it dies of SIGTERM, and the
    recipe trains on as an orphan.

    Raises:
        UserError: more processes than GPUs.
    """
    alone = processes == "1" and not config_file  # whatever GPUs there are
    gpus = 0 if alone or value_of("device", words) == "cpu" else visible_gpus(env)
    number = max(1, gpus) if processes == "auto" else int(processes)
    if 0 < gpus < number and not config_file:
        raise UserError(f"--processes {number}: only {gpus} GPU{'s'[: gpus != 1]} can be seen here, and each needs one")
    if number == 1 and not config_file:
        threads = {"OMP_NUM_THREADS": env.get("OMP_NUM_THREADS") or "1"}
        return Command((sys.executable, recipe, *words), {**env, **SIMPLE_LAUNCHER, **threads}, is_launcher=False)
    more = {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_seconds) + SHUTDOWN_MARGIN_SECONDS),
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1",  # torchrun's default has SIGHUP and lacks SIGUSR1
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS") or "1",  # what it is set to anyway, with a warning
    }
    if gpus == 0:
        more["ACCELERATE_USE_CPU"] = "true"
    options = ["--config_file", config_file] if config_file else _options(number)
    if processes != "auto" or not _says_how_many(config_file):
        options += ["--num_processes", str(number)]
    argv = (sys.executable, "-m", "accelerate.commands.launch", *options)
    return Command((*argv, recipe, *words), {**env, **more}, is_launcher=True)


def _says_how_many(config_file: str) -> bool:
    """On all its machines together, of which this one knows nothing."""
    return bool(config_file) and "\nnum_processes:" in f"\n{Path(config_file).read_text(errors='replace')}"


def _options(number: int) -> list[str]:
    """Said in full, so that accelerate does not list its defaults at every start."""
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return ["--multi_gpu", "--main_process_port", str(_free_port()), *options] if number > 1 else options


def _free_port() -> int:
    """Two runs on one machine must not meet. Port 0 would do for torch 2.14, but not for the ranks of 2.6."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
