"""The machine, faked: drivers, builds of torch, cgroups, launchers."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from pitstop import machine
from pitstop.errors import UserError

PROC = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\nGCC version: 10.2.1\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def fake_torch(patch: pytest.MonkeyPatch, *, cuda: str | None, available: bool = False, error: str = "") -> None:
    """A torch that was built for `cuda`, finds a GPU or does not, and computes on it or raises."""
    real_ones = torch.ones

    def ones(*size: int, device: str = "cpu") -> torch.Tensor:
        if device.startswith("cuda") and error:
            raise RuntimeError(error)
        return real_ones(*size)

    patch.setattr(torch.version, "cuda", cuda)
    patch.setattr(torch.cuda, "is_available", lambda: available)
    patch.setattr(torch, "ones", ones)


def test_the_driver_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    version.write_text(PROC)
    (tmp_path / "nvidia0").touch()
    assert machine.nvidia_driver(version, devices=tmp_path) == DRIVER
    (tmp_path / "nvidia0").unlink()
    assert (
        machine.nvidia_driver(version, devices=tmp_path)
        == f"{DRIVER}, hidden from this container: start it with --gpus all"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_driver(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'", "GPU 0: NVIDIA L4 (UUID: GPU-1)"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver'; exit 9", None),
        ("exit 0", None),
    ],
)
def test_nvidia_smi_is_asked_where_proc_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 1\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine.nvidia_driver(tmp_path / "none") == expected


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_cpu_build_beside_a_gpu_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    fake_torch(monkeypatch, cuda=None)
    with pytest.raises(UserError) as refusal:
        machine.choose_device(wanted, DRIVER)
    for part in (f"--device {wanted}", "470.57.02", "is a CPU build", "install one with CUDA", "--device cpu"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_an_old_driver_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    fake_torch(monkeypatch, cuda="13.0")
    with pytest.raises(UserError) as refusal:
        machine.choose_device(wanted, DRIVER)
    for part in ("470.57.02", "built for CUDA 13.0", "update the driver", "older CUDA", "--device cpu"):
        assert part in str(refusal.value)


def test_a_gpu_too_old_for_this_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"
    fake_torch(monkeypatch, cuda="13.0", available=True, error=said)
    with pytest.raises(UserError, match=r"no kernel image is available for execution on the device\)"):
        machine.choose_device("auto", DRIVER)


def test_a_gpu_that_works_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, cuda="13.0", available=True)
    assert machine.choose_device("auto", DRIVER) == "cuda"
    assert machine.choose_device("cuda", None) == "cuda"
    assert machine.choose_device("cpu", DRIVER) == "cpu"


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_who_wants_the_cpu_gets_it(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    fake_torch(monkeypatch, cuda=cuda)
    assert machine.choose_device("cpu", DRIVER) == "cpu"
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.choose_device("auto", DRIVER) == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError):
        machine.choose_device("auto", DRIVER)


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_no_driver(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    fake_torch(monkeypatch, cuda=cuda)
    assert machine.choose_device("auto", None) == "cpu"
    with pytest.raises(UserError, match="--device cuda: no NVIDIA driver was found"):
        machine.choose_device("cuda", None)


@pytest.mark.parametrize(
    ("files", "cores", "local_world", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 8, 1, 8),
        ({"cpu.max": "max 100000\n"}, 8, 2, 4),
        ({"cpu.max": "max 100000\n"}, 8, 3, 2),
        ({"cpu.max": "400000 100000\n"}, 64, 1, 4),
        ({"cpu.max": "400000 100000\n"}, 64, 2, 2),
        ({"cpu.max": "150000 100000\n"}, 64, 1, 1),
        ({"cpu.max": "50000 100000\n"}, 64, 1, 1),
        ({"cpu.max": "800000 100000\n"}, 2, 1, 2),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16, 1, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16, 1, 16),
        ({}, 6, 1, 6),
        ({}, 2, 8, 1),
    ],
)
def test_threads_from_affinity_quota_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int, local_world: int, expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert machine.cpu_threads(local_world, tmp_path) == expected


def test_affinity_is_asked_for_real() -> None:
    assert machine.cpu_threads(1, Path("/nowhere")) == len(os.sched_getaffinity(0))


def test_set_up_sets_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_cgroup_cpus", lambda root: 6.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        machine.set_up(torch.device("cpu"), deterministic=False)
        assert torch.get_num_threads() == 3
        assert not torch.are_deterministic_algorithms_enabled()
        machine.set_up(torch.device("cpu"), deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        machine.set_up(torch.device("cpu"), deterministic=False)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False


def test_processes_that_believe_to_be_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.check_world(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    machine.check_world(2)
    with pytest.raises(UserError) as refusal:
        machine.check_world(1)
    text = str(refusal.value)
    assert "WORLD_SIZE says 2 processes, but Accelerate made 1" in text
    # the command that works on a CPU (facts/ecosystem.md 3.2)
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 recipes/" in text


def test_the_shape_has_what_may_change_the_bits() -> None:
    """DESIGN 2: device model and count, threads, precision, micro-batch, memory format, optimizer implementation,
    compile, deterministic, torch and CUDA versions."""
    given: dict[str, Any] = {
        "precision": "fp32",
        "micro_batch": 0,
        "optimizer": "SGD foreach",
        "compile": False,
        "deterministic": False,
    }
    shape = machine.shape(torch.device("cpu"), 2, **given)
    assert given.items() <= shape.items()
    assert {"device", "processes", "threads", "memory_format", "torch", "cuda", "cudnn"} <= shape.keys()
    assert (shape["processes"], shape["threads"]) == (2, torch.get_num_threads())
    assert (shape["torch"], shape["cuda"]) == (torch.__version__, None)
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    assert shape["device"] == (names[0] if names else machine.processor_name())


@pytest.mark.parametrize(
    ("options", "expected"), [({"fused": True}, "SGD fused"), ({"foreach": True}, "SGD foreach"), ({}, "SGD default")]
)
def test_the_optimizers_implementation_is_named(options: dict[str, bool], expected: str) -> None:
    assert machine.optimizer_kind(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], **options)) == expected


GPU = torch.device("cuda", 1)


def test_what_the_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Percent, and 10^9 bytes that anybody has taken, of the GPU of this process."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: asked.append(device) or 87)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (3 * 10**9, 165 * 10**8))
    assert machine.gpu_use(GPU) == {"gpu_utilization": 87.0, "gpu_memory_gb": 13.5}
    assert asked == [GPU, GPU]
    assert machine.gpu_use(torch.device("cpu")) == {}


class NVMLError(Exception):
    """As pynvml has it: a kind of its own."""


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("driver"), NVMLError("MIG"), OSError(2)])
def test_what_the_driver_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000_000, 2_000_000_000))
    assert machine.gpu_use(GPU) == {"gpu_memory_gb": 1.0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert machine.gpu_use(GPU) == {}
