"""The same image in two splits is found by its bytes, whatever its name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pitstop.data import load_photos


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)


@pytest.mark.parametrize("doubles", [0, 2])
def test_images_in_two_splits(tmp_path: Path, doubles: int) -> None:
    for place, first in (("train", 0), ("val", 100), ("test", 200)):
        for label in ("a", "b"):
            for number in range(4):
                write(tmp_path / place / label / f"{number}.png", first + number + (50 if label == "b" else 0))
    for number in range(doubles):
        write(tmp_path / "test" / "b" / f"copy-{number}.png", number)  # of class a in train
        write(tmp_path / "test" / "a" / f"again-{number}.png", 200 + number)  # twice in one split: not our business
    said: list[str] = []
    load_photos(
        str(tmp_path), image_size=16, seed=0, cache=False, check=True, workers=0, may_write=False, say=said.append
    )
    lines = [line for line in said if "alike" in line]
    assert len(lines) == bool(doubles)
    assert all("2 images are in train and in test alike (16.7 % of test)" in line for line in lines)
