"""Image sets: sizes, and mean and std against numpy in float64."""

import numpy as np
import pytest
import torch

from pitstop.data import ImageSet, mean_and_std


def random_set(count: int = 30, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 6, 6), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count), ("cat", "dog"), {"sha": "1"})


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std(channels: int) -> None:
    images = random_set(channels=channels).images_NCHW
    images[:, 0] //= 3  # channels that differ
    mean, std = mean_and_std(images)
    scaled = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-9)
    assert all(isinstance(value, float) for value in mean + std)


def test_mean_and_std_do_not_depend_on_order_or_layout() -> None:
    images = random_set().images_NCHW
    expected = mean_and_std(images)
    assert mean_and_std(images.flip(0)) == expected
    assert mean_and_std(images.to(memory_format=torch.channels_last)) == expected


def test_a_flat_image_does_not_divide_by_zero() -> None:
    mean, std = mean_and_std(torch.full((4, 1, 5, 5), 128, dtype=torch.uint8))
    assert mean == pytest.approx((128 / 255,))
    assert std[0] >= 1 / 255


def test_sizes_and_moving() -> None:
    images = random_set(count=30)
    assert (len(images), images.channels, images.size) == (30, 3, 6)
    moved = images.to(torch.device("meta"))
    assert moved.images_NCHW.is_meta
    assert moved.labels_N.is_meta
    assert (moved.classes, moved.fingerprint) == (images.classes, images.fingerprint)


def test_absent_images_stay_absent() -> None:
    absent = random_set().to(torch.device("meta"))
    assert absent.to(torch.device("cpu")) is absent
    mean, std = mean_and_std(absent.images_NCHW)
    assert len(mean) == len(std) == 3
    assert min(std) > 0
