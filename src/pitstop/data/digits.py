"""The handwritten digits that come with scikit-learn: 1797 images of 8x8, no download."""

from typing import Any

import torch
from torch.nn import functional as F

from pitstop.data.images import ImageSet
from pitstop.files import sha256

NUM_TEST = 360
SIZE = 8


def load_digits(image_size: int) -> tuple[ImageSet, ImageSet]:
    """Train (1437) and test (360) set, one channel, `image_size` x `image_size`.

    The test set is the end of the set as it comes: mostly by writers whom the training set lacks, so harder and more
    honest than a random fifth. The fingerprint is of the 8x8 bytes, before any resizing.
    """
    from sklearn import datasets  # a second of import, which other data does not need

    raw = datasets.load_digits()
    small_NCHW = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # from 0..16
    labels_N = torch.from_numpy(raw.target).to(torch.int64)
    classes = tuple(str(name) for name in raw.target_names)
    fingerprint: dict[str, Any] = {
        "source": "digits",
        "image_size": image_size,
        "sha256": sha256(small_NCHW.numpy().tobytes() + labels_N.numpy().tobytes()),
        "test": NUM_TEST,
    }
    images_NCHW = small_NCHW if image_size == SIZE else _resized(small_NCHW, image_size)
    train = ImageSet(images_NCHW[:-NUM_TEST].clone(), labels_N[:-NUM_TEST].clone(), classes, fingerprint)
    test = ImageSet(images_NCHW[-NUM_TEST:].clone(), labels_N[-NUM_TEST:].clone(), classes, fingerprint)
    return train, test


def _resized(images_NCHW: torch.Tensor, size: int) -> torch.Tensor:
    scaled = F.interpolate(images_NCHW.float(), size=(size, size), mode="bilinear", align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)
