"""recipes/mnist.py as a person starts it, on small IDX files and a tiny model."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "mnist.py"


def recipe(tmp_path: Path, *flags: str) -> str:
    environment = os.environ | {"PITSTOP_DATA_DIR": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(RECIPE), "--tracker=none", f"--runs_dir={tmp_path / 'runs'}", "--name=run", *flags]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bright or dark, at random otherwise: learnt at once."""
    random = np.random.default_rng(0)
    (tmp_path / "idx").mkdir()
    for split, number in (("train", 200), ("t10k", 50)):
        labels_N = random.integers(0, 2, number, dtype=np.uint8)
        images_NHW = random.integers(0, 60, (number, 28, 28), dtype=np.uint8) + 180 * labels_N[:, None, None]
        (tmp_path / "idx" / f"{split}-images-idx3-ubyte.gz").write_bytes(idx(images_NHW))
        (tmp_path / "idx" / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx(labels_N))
    return tmp_path / "idx"


@pytest.mark.slow
def test_a_dry_run_of_what_is_not_there_yet(tmp_path: Path) -> None:
    said = recipe(tmp_path, "--dry_run", "--data=fashion_mnist", "--weights=pretrained")
    assert "60,000, 28x28 pixels, 10 classes" in said
    assert "timm/resnet18.a1_in1k are not here yet" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_learns_from_weights_of_three_channels(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    flags = (f"--data={folder}", "--model=test_resnet", "--batch_size=20", "--epochs=3", "--peak_lr=0.05")
    said = recipe(tmp_path, *flags, f"--weights={tmp_path / 'w.safetensors'}")
    assert "made to fit the channels (1): conv1.0.weight" in said
    assert "begin fresh (2): fc.weight (2, " in said
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "status.json").read_text())["result"]["accuracy"] > 0.9
    assert load_file(run / "final" / "model.safetensors")["conv1.0.weight"].shape[1] == 1
    assert json.loads((run / "final" / "model.json").read_text())["classes"] == ["0", "1"]
    known = json.loads((run / "config.json").read_text())
    assert "w.safetensors" in json.dumps(known)
