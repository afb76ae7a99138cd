"""The stream against what DESIGN 5 says of it, written out with plain lists."""

import itertools
import time
from fractions import Fraction
from math import ceil

import pytest
import torch
from torch import Tensor

from pitstop.data import Batch, Batches, ImageSet
from pitstop.data.stream import cut
from pitstop.errors import UserError
from pitstop.randomness import permutation


def numbered(count: int) -> ImageSet:
    """Image i has the pixels (i % 256, i // 256) and the label i."""
    numbers = torch.arange(count)
    pixels = torch.stack([numbers % 256, numbers // 256], 1).to(torch.uint8)
    return ImageSet(pixels[:, None, None, :], numbers, tuple(map(str, range(count))), {})


def remember(images_BCHW: Tensor, positions_B: Tensor) -> Tensor:
    """An "augmentation" whose result says which image it saw, at which position."""
    pixels = images_BCHW.to(torch.float64)
    return torch.cat([pixels[:, :, :, 0] + 256 * pixels[:, :, :, 1], positions_B[:, None, None].double()], 2)


def batches(count: int, batch_size: int, **more: int) -> Batches:
    return Batches(numbered(count), batch_size, seed=more.pop("seed", 3), augment=remember, **more)


def seen(batch: Batch) -> list[tuple[int, int]]:
    """(position, sample) of what the model gets, read out of the images themselves."""
    images = torch.cat([images for images, _ in batch.micro_batches])
    samples, positions = images[:, 0, 0].long().tolist(), images[:, 0, 1].long().tolist()
    assert samples == torch.cat([labels for _, labels in batch.micro_batches]).tolist() == batch.indices_N.tolist()
    assert positions == batch.positions_N.tolist()
    return list(zip(positions, samples, strict=True))


@pytest.mark.parametrize(("count", "batch_size"), [(37, 5), (40, 8), (300, 299), (5, 12), (7, 7)])
def test_steps_are_the_permutations_one_after_the_other(count: int, batch_size: int) -> None:
    steps = 3 * count // batch_size + 2
    stream = [item for batch in batches(count, batch_size).between(0, steps) for item in seen(batch)]
    epochs = steps * batch_size // count + 1
    samples = [i for epoch in range(epochs) for i in permutation(3, epoch, count).tolist()][: steps * batch_size]
    assert stream == list(enumerate(samples))
    for epoch in range(3):
        assert sorted(sample for _, sample in stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [10, 11, 13, 64])
@pytest.mark.parametrize("micro_batch", [0, 1, 2, 3, 4, 100])
def test_ranks_and_micro_batches_share_the_batch_in_order(world: int, batch_size: int, micro_batch: int) -> None:
    whole = batches(101, batch_size)
    ranks = [batches(101, batch_size, rank=rank, world=world, micro_batch=micro_batch) for rank in range(world)]
    for step in (0, 7, 8, 9, 10**6):
        slices = [rank.at(step) for rank in ranks]
        assert [item for part in slices for item in seen(part)] == seen(whole.at(step))
        assert {part.global_size for part in slices} == {batch_size}
        lengths = [len(part.positions_N) for part in slices]
        assert max(lengths) - min(lengths) <= 3, "balanced, but for pairs and an odd last one"
        for part, rank in zip(slices, ranks, strict=True):
            assert (part.positions_N[0] - step * batch_size) % 2 == 0, "p and p xor 1 stay together"
            sizes = [len(labels) for _, labels in part.micro_batches]
            assert min(sizes) >= 2
            assert max(sizes) - min(sizes) <= 3
            assert all(size % 2 == 0 for size in sizes[:-1])
            assert max(sizes) == rank.largest_micro_batch
            if micro_batch > 1:
                assert max(sizes) <= micro_batch + 1
            else:
                assert len(sizes) == (1 if micro_batch == 0 else len(part.positions_N) // 2)


@pytest.mark.parametrize("length", range(2, 60))
def test_cut_is_even_and_complete(length: int) -> None:
    for parts in range(1, length // 2 + 1):
        borders = cut(length, parts)
        assert (borders[0], borders[-1], len(borders)) == (0, length, parts + 1)
        assert all(border % 2 == 0 for border in borders[:-1])
        sizes = [b - a for a, b in itertools.pairwise(borders)]
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 3


def test_fewer_than_two_images_for_a_rank_are_refused() -> None:
    assert min(len(batches(50, 6, rank=r, world=3).at(0).indices_N) for r in range(3)) == 2
    with pytest.raises(UserError, match=r"--batch_size 5 is too small for 3 processes: at least 6"):
        batches(50, 5, rank=0, world=3)


def test_a_restart_at_any_step_sees_the_same() -> None:
    through = [seen(batch) for batch in batches(37, 8).between(0, 20)]
    for start in range(20):
        assert [seen(batch) for batch in batches(37, 8).between(start, 20)] == through[start:]
    backwards = batches(37, 8)  # one object, asked out of order
    assert [seen(backwards.at(step)) for step in reversed(range(20))] == through[::-1]
    assert [batch.step for batch in backwards.between(4, 7)] == [4, 5, 6]


def test_another_seed_is_another_order() -> None:
    assert seen(batches(37, 8, seed=4).at(0)) != seen(batches(37, 8).at(0))


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "steps"),
    [(50_000, 500, 26, 2600), (1437, 64, 10, 225), (10, 20, 0.25, 1), (10, 100, 0.001, 1), (100, 30, 1, 4)],
)
def test_steps_of_a_run(count: int, batch_size: int, epochs: float, steps: int) -> None:
    assert steps == max(1, ceil(Fraction(epochs) * count / batch_size))
    stream = Batches(numbered(count), batch_size, seed=0, augment=remember)
    assert stream.total_steps(epochs) == steps
    assert stream.epoch_length == count
    assert stream.steps_per_epoch == pytest.approx(count / batch_size)


def test_a_late_step_costs_what_an_early_one_costs() -> None:
    """No walk through what came before: permutations drawn, and time (a walk to step 10**9 would take hours)."""

    def costs(step: int) -> tuple[float, int]:
        stream, asked = batches(1000, 64), []
        order = stream._order
        stream._order = lambda epoch: asked.append(epoch) or order(epoch)  # type: ignore[method-assign]
        begun = time.perf_counter()
        stream.at(step)
        return time.perf_counter() - begun, len(asked)

    costs(0)
    (early_seconds, early_orders), (late_seconds, late_orders) = costs(10), costs(10**9)
    assert early_orders == late_orders == 1
    assert late_seconds < 20 * early_seconds + 0.05


def test_only_two_orders_are_kept() -> None:
    stream = batches(20, 8)
    for _ in stream.between(0, 50):
        assert len(stream._orders) <= 2


def test_absent_images_of_a_dry_run_are_counted() -> None:
    absent = ImageSet(torch.empty(50, 1, 8, 8, dtype=torch.uint8, device="meta"), torch.empty(50), ("a",), {})
    stream = Batches(absent, 20, seed=0, augment=remember, micro_batch=7)
    assert (stream.total_steps(2), stream.largest_micro_batch) == (5, 6)
