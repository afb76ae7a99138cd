"""Mixup and cutmix: whoever computes a slice gets the same bits, and the shares are those of the pixels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pitstop.data.stream import cut
from pitstop.errors import UserError
from pitstop.mix import Mix, cut_box, symmetric_beta

WAYS = [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]


def batch(size: int = 12, height: int = 9, width: int = 7) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, 3, height, width, generator=torch.Generator().manual_seed(size))
    return images.to(memory_format=torch.channels_last), torch.arange(size) % 5


@pytest.mark.parametrize("flags", WAYS, ids=str)
@pytest.mark.parametrize("size", [2, 12, 13, 31])
def test_the_slices_of_ranks_are_those_of_one_process(flags: dict[str, float], size: int) -> None:
    images, labels = batch(size)
    for world in range(1, min(5, size // 2) + 1):
        for step in range(12):
            whole = Mix(5, 3, **flags)(images, labels, step)
            spans = list(pairwise(cut(size, world)))
            pieces = [Mix(5, 3, **flags)(images[a:b], labels[a:b], step) for a, b in spans]
            for number in (0, 1):
                assert torch.equal(torch.cat([piece[number] for piece in pieces]), whole[number]), (world, step)


@pytest.mark.parametrize("flags", WAYS, ids=str)
def test_a_step_is_mixed_the_same_way_whatever_came_before(flags: dict[str, float]) -> None:
    images, labels = batch()
    before = images.clone()
    mix = Mix(5, 3, **flags)
    forward = [mix(images, labels, step) for step in range(20)]
    torch.rand(3)
    for step in reversed(range(20)):
        again = Mix(5, 3, **flags)(images, labels, step)
        assert torch.equal(again[0], forward[step][0])
        assert torch.equal(again[1], forward[step][1])
    assert torch.equal(images, before), "the images given are not changed"
    assert len({m[0].numpy().tobytes() for m in forward}) > 15
    assert not torch.equal(Mix(5, 4, **flags)(images, labels, 0)[0], forward[0][0])


@pytest.mark.parametrize("flags", WAYS, ids=str)
def test_types_shares_and_memory_order(flags: dict[str, float]) -> None:
    images, labels = batch()
    for step in range(10):
        mixed, targets = Mix(5, 0, **flags)(images, labels, step)
        assert (mixed.shape, mixed.dtype, mixed.stride()) == (images.shape, torch.float32, images.stride())
        assert (tuple(targets.shape), targets.dtype) == ((12, 5), torch.float32)
        torch.testing.assert_close(targets.sum(1), torch.ones(12))


def test_mixup_blends_neighbours_by_their_share() -> None:
    """Images that hold their own one-hot label tell what became of them."""
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 2])
    images = torch.eye(5)[labels][:, :, None, None].expand(7, 5, 4, 4).contiguous()
    for step in range(30):
        mixed, targets = Mix(5, 1, mixup=1.0)(images, labels, step)
        torch.testing.assert_close(mixed, targets[:, :, None, None].expand(7, 5, 4, 4))
        share = targets[0, 0].item()
        torch.testing.assert_close(targets[1, 1].item(), share)
        torch.testing.assert_close(targets[0, 1].item(), 1 - share, atol=1e-6, rtol=0)
        assert targets[6, 2].item() == pytest.approx(1.0), "an odd last one is its own partner"
        assert mixed[:6].flatten(1).std(1).min() >= 0


def test_cutmix_shares_are_those_of_the_pixels() -> None:
    """Counted pixel by pixel; also where the box is cut off at an edge, on images that are not square."""
    labels = torch.tensor([0, 1, 2, 3, 4])
    images = torch.eye(5)[labels][:, :, None, None].expand(5, 5, 9, 14).contiguous()
    counts = set()
    for step in range(200):
        mixed, targets = Mix(5, 1, cutmix=1.0)(images, labels, step)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}, "each pixel is of one image"
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        other = mixed[0, 1]
        counts.add(int(other.sum()))
        if other.any():
            rows, columns = other.any(1).nonzero(), other.any(0).nonzero()
            assert other[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all(), "one box"
        assert torch.equal(mixed[4], images[4])
    assert len(counts) > 30
    assert max(counts) > 90
    assert min(counts) == 0


def test_both_take_turns() -> None:
    labels = torch.tensor([0, 1])
    images = torch.eye(2)[labels][:, :, None, None].expand(2, 2, 8, 8).contiguous()
    cuts = sum(
        set(Mix(2, 0, mixup=1.0, cutmix=1.0)(images, labels, step)[0].unique().tolist()) <= {0.0, 1.0}
        for step in range(1000)
    )
    assert 430 < cuts < 570


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_the_shares_of_the_steps_have_the_distribution_beta(alpha: float) -> None:
    """Against scipy's, by Kolmogorov and Smirnov's bound (1 in 1000). Not at the ends, where many a share of a small
    alpha is 0 or 1 but for a float's last bit."""
    from scipy.stats import beta

    mix, images, labels = Mix(2, 0, mixup=alpha), torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    shares = np.array([mix(images, labels, step)[1][0, 0].item() for step in range(4000)])
    assert 0 <= shares.min() <= shares.max() <= 1
    points = np.linspace(0.005, 0.995, 199)
    found = (shares[:, None] <= points).mean(0)
    assert np.abs(found - beta(alpha, alpha).cdf(points)).max() < 1.95 / math.sqrt(len(shares))


def test_the_ends_of_the_distribution_are_numbers() -> None:
    largest = 1 - 2.0**-24
    for alpha in (1e-6, 0.01, 1.0, 1e6):
        for radius in (0.0, 2.0**-24, 0.5, largest):
            for angle in (0.0, 0.25, 0.5, 0.75, largest):
                assert 0 <= symmetric_beta(alpha, radius, angle) <= 1
    assert symmetric_beta(1.0, 0.0, 0.1) == 0.5
    assert symmetric_beta(1e-6, 0.5, 0.0) == 1.0
    assert symmetric_beta(1e-6, 0.5, 0.5) == 0.0


def test_a_box_lies_inside_and_has_its_size() -> None:
    values = np.linspace(0, 1 - 2.0**-24, 9)
    for height, width in ((32, 32), (9, 14), (1, 5)):
        for share in (0.0, 0.3, 0.5, 1.0):
            for y in values:
                for x in values:
                    top, bottom, left, right = cut_box(height, width, share, float(y), float(x))
                    assert 0 <= top <= bottom <= height
                    assert 0 <= left <= right <= width
                    assert bottom - top <= height * math.sqrt(share) + 1e-9
    assert cut_box(32, 32, 0.25, 0.5, 0.5) == (8, 24, 8, 24)


def test_what_cannot_be_is_said() -> None:
    for flags in ({"mixup": -1.0}, {"mixup": math.nan}, {"cutmix": math.inf}):
        with pytest.raises(UserError, match=r"--(mixup|cutmix) .*: 0 \(off\) or a positive number was expected"):
            Mix(5, 0, **flags)
    with pytest.raises(UserError, match="Neither --mixup nor --cutmix is above 0"):
        Mix(5, 0)
