"""The proof of an export: its own runtime loads it, in a process without pitstop, and computes the same logits."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn import datasets
from torch import nn

from pitstop import augment
from pitstop.errors import UserError
from pitstop.export import plain

TOLERANCE = 1e-4  # of a logit, as a share of the largest: other kernels add up in another order
NUM_IMAGES = 16


def photographs(channels: int, size: int) -> NDArray[np.uint8]:
    """Real images_NCHW: square pieces, of all sizes, of the two photographs that come with scikit-learn."""
    photos = datasets.load_sample_images().images  # type: ignore[no-untyped-call]
    pieces = []
    for number in range(NUM_IMAGES):
        photo = Image.fromarray(photos[number % 2])
        side = min(photo.size) * (NUM_IMAGES - number) // NUM_IMAGES
        left, top = ((length - side) * number // NUM_IMAGES for length in photo.size)
        piece = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        pieces.append(np.asarray(piece.convert("RGB" if channels == 3 else "L")).reshape(size, size, channels))
    return np.stack(pieces).transpose(0, 3, 1, 2)


def compared(model: nn.Module, about: dict[str, Any], name: str, file: Path) -> tuple[float, str]:
    """(largest difference of a logit between `model` and the exported `file`, who has loaded it).

    Raises:
        UserError: it does not load, or the difference is more than rounding.
    """
    images_NCHW = photographs(about["channels"], about["image_size"])
    with torch.no_grad():
        ours_NK = model(augment.normalise(torch.from_numpy(images_NCHW), about["mean"], about["std"])).numpy()
    folder = file.parent
    np.save(folder / "images.npy", images_NCHW)
    program = shutil.copy(plain.__file__, folder)  # beside the module's neighbours it would import them: files, data
    words = [sys.executable, program, name, file, folder / "images.npy", folder / "logits.npy"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        tail = "\n    ".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"the exported {name} does not load where pitstop is not; nothing was written:\n    {tail}")
    theirs_MNK = np.load(folder / "logits.npy")
    difference = float(np.abs(theirs_MNK - ours_NK).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(ours_NK).max()))
    if not difference <= allowed:  # nor if it is no number
        raise UserError(
            f"the exported {name} computes other logits than the run's model: they differ by up to {difference:.1e}, "
            f"at most {allowed:.1e} was expected. Nothing was written."
        )
    return difference, " and ".join(plain.RUNTIMES[name][: len(theirs_MNK)])
