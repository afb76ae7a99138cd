"""What is started, and how many times, without asking torch."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pitstop.errors import UserError
from pitstop.supervise.launch import split
from pitstop.supervise.program import Command, build, value_of, visible_gpus


@pytest.mark.parametrize(
    ("listed", "count"),
    [("", 0), ("-1", 0), ("0", 1), ("0,1, 3", 3), ("1,-1,2", 1), ("GPU-a1,MIG-b2", 2), ("NoDev", 1)],
)
def test_gpus_that_the_environment_names(listed: str, count: int) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == count


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus_that_the_driver_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus({}, tmp_path / "nowhere") == 0
    gpus = tmp_path / "gpus"
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (gpus / name).mkdir(parents=True)
    assert visible_gpus({}, gpus) == 2
    nvidia_smi(
        tmp_path, monkeypatch, 'echo "GPU 0: NVIDIA A100 (UUID: GPU-1)"; echo "  MIG 1g.5gb Device 0: (UUID: x)"'
    )
    assert visible_gpus({}, gpus) == 1, "what a container shows, not what the host has"
    nvidia_smi(tmp_path, monkeypatch, "exit 9")
    assert visible_gpus({}, gpus) == 2


def test_values_of_the_recipes_flags() -> None:
    words = ["--runs-dir=/a b", "--name", "r", "--device", "cpu", "--last"]
    assert value_of("runs_dir", words) == "/a b"
    assert value_of("name", words) == "r"
    assert value_of("last", words) is None
    assert value_of("nam", words) is None


def made(words: Sequence[str] = (), *, processes: str = "auto", config_file: str = "", **env: str) -> Command:
    options = {"processes": processes, "config_file": config_file, "grace_seconds": 60.5}
    return build("r.py", words, **options, env={"CUDA_VISIBLE_DEVICES": "", **env})


def test_one_process_is_the_recipe_itself() -> None:
    for command in (made(["--x", ""]), made(["--x", ""], processes="1", CUDA_VISIBLE_DEVICES="0,1")):
        assert command.argv == (sys.executable, "r.py", "--x", "")
        assert not command.is_launcher
    assert made(["--device", "cpu"], CUDA_VISIBLE_DEVICES="0,1").argv[1] == "r.py"
    assert made(OMP_NUM_THREADS="5").env["OMP_NUM_THREADS"] == "5"


def test_several_processes() -> None:
    command = made(["--x"], CUDA_VISIBLE_DEVICES="0,1,2")
    assert command.argv[:4] == (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu")
    assert command.argv[-4:] == ("--num_processes", "3", "r.py", "--x")
    assert command.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "91", "later than ours"
    assert command.env["PET_SIGNALS_TO_HANDLE"] == "SIGTERM,SIGINT,SIGUSR1"
    assert "ACCELERATE_USE_CPU" not in command.env
    assert made(processes="2").env["ACCELERATE_USE_CPU"] == "true"


def test_a_config_file(tmp_path: Path) -> None:
    """It may say how many processes there are, on several machines; then nobody else does."""
    file = tmp_path / "f.yaml"
    for content, flags in (("num_machines: 1\n", ("--num_processes", "2")), ("x: 1\nnum_processes: 16\n", ())):
        file.write_text(content)
        with_file = made(config_file=str(file), CUDA_VISIBLE_DEVICES="0,1")
        assert with_file.argv[3:] == ("--config_file", str(file), *flags, "r.py")
        assert with_file.is_launcher
        assert made(config_file=str(file), processes="8", CUDA_VISIBLE_DEVICES="0,1").argv[5:7] == (
            "--num_processes",
            "8",
        )


def test_more_processes_than_gpus() -> None:
    with pytest.raises(UserError, match="only 2 GPUs"):
        made(processes="3", CUDA_VISIBLE_DEVICES="0,1")


def test_own_flags_stand_before_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").touch()
    rest = ["--grace", "5", "--detach", "--then", "x"]
    for own in (
        [],
        ["--detach"],
        ["--grace", "5s", "--no-detach"],
        ["--then=-x y", "--detach"],
        ["--then", "sudo shutdown now", "--restarts", "3"],
        ["--detahc"],  # is answered with the nearest name; the recipe stays the recipe
    ):
        assert split([*own, "r.py", *rest]) == (own, ["r.py"], rest)
    assert split(["--grace"]) == (["--grace"], [], [])
    assert split(["--graec", "5s", "r.py"]) == (["--graec", "5s"], ["r.py"], [])
