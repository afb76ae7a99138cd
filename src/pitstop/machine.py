"""The machine: which device, how many threads, and what of it may change the bits of a run (its shape)."""

import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL
import timm
import torch

from pitstop import __version__
from pitstop.errors import UserError

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def nvidia_driver(version_file: Path = NVIDIA_DRIVER, devices: Path = Path("/dev")) -> str | None:
    """What the NVIDIA driver says of itself, or None where there is none."""
    if version_file.exists():
        hidden = "" if list(devices.glob("nvidia[0-9]*")) else ", hidden from this container: start it with --gpus all"
        return version_file.read_text().splitlines()[0].strip() + hidden
    if shutil.which("nvidia-smi"):  # WSL and some containers have no /proc/driver/nvidia
        try:
            listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return "nvidia-smi does not answer: the driver hangs"
        if listing.returncode == 0 and "GPU" in listing.stdout:
            return listing.stdout.splitlines()[0].strip()
    return None


def _try_cuda() -> str:
    """Empty if torch can compute on the GPU, else what it says. Not measured on a GPU."""
    try:
        torch.ones(2, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}").sum().item()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def choose_device(wanted: str, driver: str | None) -> str:
    """ "cuda" or "cpu" for --device `wanted`. A GPU that is there and cannot be used is never passed over in silence.

    Raises:
        UserError: a GPU was asked for, or is there, and this torch cannot use it: with the mend.
    """
    if wanted == "cpu" or (wanted == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")):
        return "cpu"
    built_for = torch.version.cuda
    problem = "" if torch.cuda.is_available() else "torch.cuda.is_available() is False"
    problem = problem or _try_cuda()
    if not problem:
        return "cuda"
    if driver is None and wanted == "auto":
        return "cpu"
    if driver is None:
        raise UserError(f"--device {wanted}: no NVIDIA driver was found here. Without a GPU: --device cpu, slowly.")
    if built_for is None:
        mend = f"torch {torch.__version__} is a CPU build: install one with CUDA (pytorch.org, Get started)"
    else:
        mend = (
            f"torch {torch.__version__} was built for CUDA {built_for}: update the driver, or install a torch built "
            "for an older CUDA or for this GPU (pytorch.org, Previous versions)"
        )
    raise UserError(
        f"--device {wanted}: an NVIDIA GPU is here ({driver}), but torch cannot use it ({problem}). {mend}. "
        "Or train, slowly, with --device cpu."
    )


def _cgroup_cpus(root: Path) -> float:
    """CPUs that the cgroup's quota allows (v2, then v1), or infinity."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.isdigit() else math.inf


def cpu_threads(local_world: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Threads for this process: its share of the cores it may use, by affinity and cgroup quota.

    Set, because `accelerate launch` and torchrun put OMP_NUM_THREADS to 1 on a CPU.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, max(1, _cgroup_cpus(cgroup)))) // local_world)


def check_world(world: int) -> None:
    """Raises UserError if the launcher made several processes and each believes to be alone."""
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected != world:
        raise UserError(
            f"WORLD_SIZE says {expected} processes, but Accelerate made {world}: {expected} trainings would write the "
            f"same files. On a CPU start it so: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            f"--num_processes {max(2, expected)} recipes/... (or torchrun --nproc_per_node {expected} recipes/...)."
        )


def set_up(device: torch.device, *, deterministic: bool) -> None:
    """Threads and cuDNN of this process."""
    if device.type == "cpu":
        torch.set_num_threads(cpu_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("high")  # TF32 where fp32 is left; it belongs to the GPU model, so to the shape


def processor_name() -> str:
    """The CPU's model, as Linux has it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_use(device: torch.device) -> dict[str, float]:
    """What a row says of the GPU: percent of the last second or less in which it computed anything, and how much of its
    memory is taken, by whomever, in 10^9 bytes. What the driver does not tell is left out. Not measured on a GPU."""
    if device.type != "cuda":
        return {}
    asked: dict[str, Callable[[], float]] = {
        "gpu_utilization": lambda: float(torch.cuda.utilization(device)),  # by nvidia-ml-py
        "gpu_memory_gb": lambda: _taken_bytes(device) / 1e9,
    }
    told = {}
    for name, ask in asked.items():
        # NVML's errors are of a kind of their own (no permission, not on a slice of a GPU), and torch has others: none
        # of them is worth a run.
        with suppress(Exception):
            told[name] = round(ask(), 3)
    return told


def _taken_bytes(device: torch.device) -> int:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return int(total_bytes - free_bytes)


def optimizer_kind(optimizer: torch.optim.Optimizer) -> str:
    """Its name and implementation: fused, foreach and the plain loop give different bits."""
    group = optimizer.param_groups[0]
    kind = "fused" if group.get("fused") else "foreach" if group.get("foreach") else "default"
    return f"{type(optimizer).__name__} {kind}"


def shape(device: torch.device, world: int, **of_the_run: Any) -> dict[str, Any]:
    """What may change the bits of a run, but not its stream: recorded in every checkpoint, compared at a restore."""
    cuda = device.type == "cuda"
    cudnn: Any = torch.backends.cudnn
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "processes": world,
        "threads": torch.get_num_threads() if not cuda else None,
        "memory_format": "channels_last",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": cudnn.version() if cuda else None,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
        "pitstop": __version__,
        **of_the_run,
    }
