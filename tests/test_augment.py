"""Augmentation against a reference that goes through the images one by one, in numpy."""

import numpy as np
import pytest
import torch

from pitstop.augment import Standard, normalise
from pitstop.errors import UserError
from pitstop.randomness import draws

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
SIZE = 12


def images(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (count, channels, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def pick(uniform: float, low: int, high: int) -> int:
    return low + int(np.floor(np.float64(uniform) * (high - low + 1)))


def reference(image_CHW: np.ndarray, drawn: list[float], *, flip: bool, shift: int, cutout: int) -> np.ndarray:
    """One image, the draws in the order flip, shift down, shift right, cutout's top, cutout's left; float64."""
    if flip and drawn[0] < 0.5:
        image_CHW = image_CHW[:, :, ::-1]
    moved = np.zeros_like(image_CHW)
    down, right = pick(drawn[1], 0, 2 * shift) - shift, pick(drawn[2], 0, 2 * shift) - shift
    for y in range(SIZE):
        for x in range(SIZE):
            if 0 <= y + down < SIZE and 0 <= x + right < SIZE:
                moved[:, y, x] = image_CHW[:, y + down, x + right]
    result = (moved / 255.0 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    if cutout:
        top, left = pick(drawn[3], 0, SIZE - cutout), pick(drawn[4], 0, SIZE - cutout)
        result[:, top : top + cutout, left : left + cutout] = 0
    return result


@pytest.mark.parametrize(
    ("flip", "shift", "cutout"),
    [(False, 0, 0), (True, 0, 0), (False, 3, 0), (False, 0, 5), (True, 4, 6), (True, 1, SIZE - 1)],
)
def test_equals_the_reference(flip: bool, shift: int, cutout: int) -> None:
    batch, positions = images(40), torch.arange(10**10, 10**10 + 40)
    augment = Standard(MEAN, STD, size=SIZE, seed=5, flip=flip, shift=shift, cutout=cutout)
    got = augment(batch, positions)
    drawn = draws(5, positions, 5).tolist()
    options = {"flip": flip, "shift": shift, "cutout": cutout}
    expected = np.stack([reference(image, d, **options) for image, d in zip(batch.numpy(), drawn, strict=True)])
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)
    if cutout:
        assert np.array_equal(got.numpy() == 0, expected == 0), "the square is exactly the mean"


def test_all_shifts_flips_and_squares_occur() -> None:
    """One bright pixel in the middle tells by how much its image moved; the hole tells where the square lies."""
    one = torch.zeros(3000, 1, SIZE, SIZE, dtype=torch.uint8)
    one[:, :, 6, 6] = 255
    moved = Standard((0.0,), (1.0,), size=SIZE, seed=0, flip=False, shift=2)(one, torch.arange(3000))
    _, _, rows, columns = moved.nonzero().T
    counts = np.bincount((rows - 4) * 5 + columns - 4, minlength=25)
    assert len(counts) == 25
    assert counts.min() > 80  # 120 expected
    mirrored = Standard((0.0,), (1.0,), size=SIZE, seed=0, flip=True)(one, torch.arange(3000)).nonzero()[:, 3]
    assert set(mirrored.tolist()) == {5, 6}
    assert 1400 < (mirrored == 5).sum() < 1600
    white = torch.full_like(one, 255)
    cut = Standard((0.5,), (1.0,), size=SIZE, seed=0, flip=False, cutout=9)
    holes = (cut(white, torch.arange(3000)) == 0).flatten(1)
    assert (holes.sum(1) == 81).all()
    corners = holes.int().argmax(1)
    assert {divmod(int(corner), SIZE) for corner in corners} == {(y, x) for y in range(4) for x in range(4)}


def test_same_bits_for_any_split_of_the_batch() -> None:
    batch, positions = images(30), torch.arange(777, 807)
    augment = Standard(MEAN, STD, size=SIZE, seed=1, flip=True, shift=4, cutout=6)
    whole = augment(batch, positions)
    for sizes in ([1, 2, 27], [15, 15], [1] * 30):
        pieces = zip(batch.split(sizes), positions.split(sizes), strict=True)
        assert torch.equal(torch.cat([augment(*piece) for piece in pieces]), whole)
    other = Standard(MEAN, STD, size=SIZE, seed=2, flip=True, shift=4, cutout=6)(batch, positions)
    assert not torch.equal(other, whole)


def test_the_input_stays_as_it_was() -> None:
    batch = images(4)
    before = batch.clone()
    Standard(MEAN, STD, size=SIZE, seed=1, flip=True, shift=4, cutout=6)(batch, torch.arange(4))
    normalise(batch, MEAN, STD)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_against_float64(channels: int) -> None:
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, channels, 1, 1)
    got = normalise(every_value, MEAN[:channels], STD[:channels])
    exact = np.arange(256).reshape(16, 16) / 255
    for channel in range(channels):
        np.testing.assert_allclose(got[0, channel].numpy(), (exact - MEAN[channel]) / STD[channel], atol=1e-6)
    assert got.dtype == torch.float32


def test_results_are_channels_last() -> None:
    for shift, cutout in ((2, 3), (0, 0)):
        augment = Standard(MEAN, STD, size=SIZE, seed=0, flip=bool(shift), shift=shift, cutout=cutout)
        assert augment(images(5), torch.arange(5)).is_contiguous(memory_format=torch.channels_last)
    assert normalise(images(5), MEAN, STD).is_contiguous(memory_format=torch.channels_last)


def test_absent_images_of_a_dry_run_have_a_shape() -> None:
    absent = torch.empty(6, 3, SIZE, SIZE, dtype=torch.uint8, device="meta")
    augment = Standard(MEAN, STD, size=SIZE, seed=0, flip=True, shift=2, cutout=3)
    assert augment(absent, torch.arange(6, device="meta")).shape == (6, 3, SIZE, SIZE)


@pytest.mark.parametrize(("name", "value"), [("shift", SIZE), ("cutout", SIZE + 1)])
def test_what_leaves_nothing_of_an_image_is_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"--{name} {value}: less than the {SIZE} pixels"):
        Standard(MEAN, STD, size=SIZE, seed=0, flip=False, **{name: value})
