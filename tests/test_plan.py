"""What --dry_run says, against figures from elsewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pitstop import models, plan
from pitstop.config import RecipeConfig
from pitstop.data import Batches, ImageSet

CLASSES = tuple("0123456789")


def described(tmp_path: Path, name: str, size: int, *, images: int, absent: bool, **options: Any) -> str:
    precision, micro_batch = options.pop("precision", "fp32"), options.pop("micro_batch", 0)
    config = RecipeConfig(runs_dir=tmp_path, **options)
    pixels = torch.empty(images, 3, size, size, dtype=torch.uint8, device="meta" if absent else "cpu")
    labels = torch.empty(images, dtype=torch.int64, device=pixels.device)
    model = models.create(name, classes=CLASSES, channels=3, image_size=size, stem="small", seed=0)
    stream = Batches(
        ImageSet(pixels, labels, CLASSES, {}),
        config.batch_size,
        seed=0,
        augment=lambda images, positions: images.float(),
        micro_batch=micro_batch,
    )
    shape = {"precision": precision, "cuda": None, "threads": 2}
    steps = stream.total_steps(config.epochs)
    weight_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    return plan.describe(tmp_path / "not" / "yet", config, model, stream, steps, shape, 2 * weight_bytes)


def number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[1].replace(",", ""))


def test_resnet18_on_cifar10_without_the_images(tmp_path: Path) -> None:
    """3 x 2 x 0.5554 GMAC = 3.33 GFLOP an image (timm's and fvcore's count), 11,173,962 parameters."""
    text = described(tmp_path, "resnet18", 32, images=50_000, absent=True, epochs=26, batch_size=500, keep=3)
    assert number(text, r"parameters +([\d,]+)") == 11_173_962
    assert number(text, r"FLOPs.* ([\d.]+) G an image") == pytest.approx(3.33, rel=0.01)
    assert number(text, r"an image, ([\d.]+) P in all") == pytest.approx(3.33e9 * 50_000 * 26 / 1e15, rel=0.01)
    assert "2,600 of 500 images" in text
    assert "50,000, 32x32 pixels, 10 classes" in text
    # memory: weights, gradients and momentum of 4 bytes; the images a byte a value
    assert number(text, r"weights, gradients, momentum +([\d,]+) MB") == pytest.approx(3 * 44.7, abs=1)
    assert number(text, r"training images +([\d,]+) MB") == pytest.approx(50_000 * 3 * 32 * 32 / 1e6, abs=1)
    # disk: 4 checkpoints of 89.4 MB (weights and momentum), and the result of 44.7 MB
    assert number(text, r"4 checkpoints and the result +([\d,]+) MB") == pytest.approx(4 * 89.4 + 44.7, abs=1)
    assert f"free at {tmp_path.resolve()}" in text
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    parts = [
        float(v.replace(",", "")) for v in re.findall(r"(?:momentum|of 500 images|training images) +([\d,]+) MB", text)
    ]
    assert len(parts) == 3
    assert number(text, r"together, libraries apart +([\d,]+) MB") == pytest.approx(sum(parts), abs=2)


def activations(text: str) -> tuple[int, float]:
    found = re.search(r"activations of (\d+) images +([\d,]+) MB", text)
    assert found
    return int(found[1]), float(found[2].replace(",", ""))


def test_activations_follow_micro_batch_and_precision(tmp_path: Path) -> None:
    common: dict[str, Any] = {"images": 4000, "absent": False, "batch_size": 2000}
    images, whole = activations(described(tmp_path, "test_resnet", 16, **common))
    assert images == 2000
    assert whole > 20
    assert activations(described(tmp_path, "test_resnet", 16, micro_batch=500, **common)) == (
        500,
        pytest.approx(whole / 4, abs=1),
    )
    half = activations(described(tmp_path, "test_resnet", 16, precision="fp16", **common))[1]
    assert half == pytest.approx(whole / 2, abs=1)


def test_every_field_of_the_config_and_the_machine_is_said(tmp_path: Path) -> None:
    text = described(tmp_path, "test_resnet", 16, images=100, absent=True, batch_size=20, peak_lr=0.123, epochs=2)
    for name in RecipeConfig.model_fields:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert re.search(r"^  peak_lr +0\.123$", text, re.MULTILINE)
    assert re.search(r"^  threads +2$", text, re.MULTILINE)
    assert "nothing was started (--dry_run)" in text
    assert "  cuda " not in text
