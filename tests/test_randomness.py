"""Random numbers against a plain-Python splitmix64, published values, and statistics."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from pitstop.randomness import draws, integers, key, mix, mix_tensor, permutation, seed_generators

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
# The first outputs of splitmix64 for seed 1234567: Rosetta Code ("Pseudo-random numbers/Splitmix64"), Vigna's C code.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def reference(state: int) -> int:
    """The output function of splitmix64, in integers without bounds."""
    z = state & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def reference_key(*words: int) -> int:
    state = 0
    for word in words:
        state = reference((state + GAMMA + (word & MASK)) & MASK)
    return state


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def chi_square(values: np.ndarray, bins: int) -> float:
    """Of whole numbers in 0..bins-1 that should be equally frequent."""
    counts = np.bincount(values.ravel(), minlength=bins)
    assert len(counts) == bins
    expected = values.size / bins
    return float(((counts - expected) ** 2 / expected).sum())


def bins_of(uniform: Tensor, bins: int) -> np.ndarray:
    return np.floor(uniform.double().numpy() * bins).astype(np.int64)


def test_published_values() -> None:
    states = [1234567 + GAMMA * (i + 1) for i in range(5)]
    assert [mix(state) for state in states] == PUBLISHED
    tensor = torch.tensor([signed(state & MASK) for state in states])
    assert mix_tensor(tensor).tolist() == [signed(value) for value in PUBLISHED]
    assert key(1234567) == PUBLISHED[0]


def test_tensors_equal_plain_python() -> None:
    generator = random.Random(5)
    values = [0, 1, -1, 2**63 - 1, -(2**63)] + [generator.randrange(-(2**63), 2**63) for _ in range(5000)]
    expected = [signed(reference(value)) for value in values]
    assert mix_tensor(torch.tensor(values)).tolist() == expected
    assert [signed(mix(value)) for value in values] == expected
    assert mix_tensor(torch.tensor(values).reshape(5, -1)).flatten().tolist() == expected


def test_keys_depend_on_each_word_and_on_their_order() -> None:
    assert key(3, 1, 4) == reference_key(3, 1, 4)
    assert key(-1, 2**40) == reference_key(-1, 2**40)
    words = [(a, b) for a in range(40) for b in range(40)] + [(a,) for a in range(40)]
    assert len({key(*w) for w in words}) == len(words)
    assert len({key(*w) & 0xFFFFFFFF for w in words}) == len(words)  # and in the 32 bits that a CPU generator takes


@pytest.mark.parametrize("length", [1, 2, 97, 4096])
def test_permutation_equals_sorting_by_hash(length: int) -> None:
    start = reference_key(1, 11, 3)
    hashes = [signed(reference(start + GAMMA * i)) for i in range(length)]
    order = permutation(11, 3, length)
    assert order.tolist() == sorted(range(length), key=hashes.__getitem__)
    assert sorted(order.tolist()) == list(range(length))
    assert (order.dtype, order.device.type) == (torch.int64, "cpu")


def test_permutations_differ_for_each_seed_and_epoch() -> None:
    """`seed << 32 | epoch` in torch.manual_seed would give seeds 7 and 8 one order: the CPU reads 32 bits."""
    seeds, epochs = [0, 1, 7, 8, 2**31 - 1, 7 << 32, 8 << 32], range(6)
    orders = {(seed, epoch): tuple(permutation(seed, epoch, 64).tolist()) for seed in seeds for epoch in epochs}
    assert len(set(orders.values())) == len(orders)


def test_permutations_place_each_sample_everywhere() -> None:
    places = torch.stack([permutation(0, epoch, 16) for epoch in range(4000)]).numpy()
    for place in range(16):
        assert chi_square(places[:, place], 16) < 45  # 15 degrees of freedom: beyond it once in 10,000
    # which sample follows which: 240 ordered pairs, 239 degrees of freedom
    pairs = (places[:, :-1] * 16 + places[:, 1:]).ravel()
    counts = np.bincount(pairs, minlength=256).reshape(16, 16)
    assert counts.diagonal().sum() == 0
    expected = pairs.size / 240
    assert ((counts[~np.eye(16, dtype=bool)] - expected) ** 2 / expected).sum() < 330


def test_golden_values() -> None:
    """Another order or other draws are another result for everybody's runs: not to be changed without a word."""
    assert key(1, 2, 3) == 7702586659592502839
    assert permutation(0, 0, 10).tolist() == [4, 5, 9, 3, 1, 6, 0, 7, 2, 8]
    assert permutation(7, 3, 10).tolist() == [3, 5, 7, 8, 4, 9, 2, 1, 6, 0]
    drawn = (draws(0, torch.tensor([0, 1, 2**40]), 5) * 2**24).tolist()
    assert drawn == [
        [2243640, 9741959, 11506363, 10521378, 10573639],
        [9676031, 8213505, 10754606, 4258286, 3820249],
        [14792658, 12905587, 4965460, 7121223, 3245242],
    ]


def test_draws_equal_plain_python() -> None:
    positions = [0, 1, 2, 999, 2**31, 2**45 + 1]
    expected = [
        [(reference((position * GAMMA & MASK) ^ reference_key(2, 9, lane)) >> 40) / 2**24 for lane in range(4)]
        for position in positions
    ]
    drawn = draws(9, torch.tensor(positions), 4)
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_draws_are_the_same_in_any_batch() -> None:
    positions = torch.arange(10**9, 10**9 + 60)
    whole = draws(3, positions, 5)
    assert torch.equal(torch.cat([draws(3, piece, 5) for piece in positions.split([1, 7, 30, 22])]), whole)
    backwards = torch.arange(59, -1, -1)
    assert torch.equal(draws(3, positions[backwards], 5), whole[backwards])
    assert torch.equal(draws(3, positions, 2), whole[:, :2]), "a further lane must not change the others"


def test_draws_are_uniform_and_independent() -> None:
    drawn = draws(0, torch.arange(40_000), 5)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    cells = bins_of(drawn, 32)
    for lane in range(5):
        assert 7 < chi_square(cells[:, lane], 32) < 66  # 31 degrees of freedom
        assert chi_square(cells[:-1, lane] * 32 + cells[1:, lane], 1024) < 1200  # neighbours, 1023
        for other in range(lane):
            assert chi_square(cells[:, lane] * 32 + cells[:, other], 1024) < 1200
    seeds = bins_of(torch.stack([draws(seed, torch.arange(20_000), 1)[:, 0] for seed in (7, 8)]), 16)
    assert chi_square(seeds[0] * 16 + seeds[1], 256) < 340
    epochs = bins_of(torch.stack([draws(0, torch.arange(20_000) + start, 1)[:, 0] for start in (0, 50_000)]), 16)
    assert chi_square(epochs[0] * 16 + epochs[1], 256) < 340


def test_integers_cover_both_ends_evenly() -> None:
    grid = torch.arange(2**24).to(torch.float32) * 2.0**-24  # every value that `draws` can give
    for low, high in ((0, 8), (-3, 3), (5, 5), (0, 1)):
        counts = torch.bincount(integers(grid, low, high) - low).tolist()
        assert len(counts) == high - low + 1
        assert max(counts) - min(counts) <= 1
    assert integers(grid[-1:], 0, 8).tolist() == [8]


def test_seeded_generators_repeat_dropout_and_nothing_else_changes() -> None:

    dropout, ones = torch.nn.Dropout(0.5), torch.ones(4, 50)
    cpu = torch.device("cpu")
    others = (random.getstate(), np.random.get_state()[1].tolist())
    seed_generators(4, 10, 0, device=cpu)
    first, second = dropout(ones), dropout(ones)
    assert not torch.equal(first, second)
    torch.rand(1000)
    seed_generators(4, 10, 0, device=cpu)
    assert torch.equal(dropout(ones), first)
    for words in ((4, 11, 0), (4, 10, 1), (4, 10 + 2**32, 0)):
        seed_generators(*words, device=cpu)
        assert not torch.equal(dropout(ones), first), words
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others


def test_the_numbers_of_samples_ask_no_generator() -> None:
    before = torch.get_rng_state()
    draws(0, torch.arange(9), 5)
    permutation(0, 0, 9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_same_bits_on_the_gpu() -> None:
    positions = torch.arange(10**6, 10**6 + 5000)
    assert torch.equal(draws(3, positions.cuda(), 5).cpu(), draws(3, positions, 5))
    values = torch.tensor([-(2**63), -1, 0, 1, 2**63 - 1])
    assert torch.equal(mix_tensor(values.cuda()).cpu(), mix_tensor(values))
