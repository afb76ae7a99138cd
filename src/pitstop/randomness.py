"""Random numbers that are functions of where they are used, never of what was drawn before.

Every number is a hash of a key, so nothing has to be saved, and a resume costs the same at step 10 and at step
10 million. The hash is the finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014; constants of Stafford's mix 13). int64 tensors wrap around alike on CPU and GPU, in any batch.
"""

import functools

import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1

# The first word of each key, so that no two uses share their numbers.
PERMUTATION, SAMPLE, MODEL_INIT, MODEL_STEP, MIXING, RESAMPLE = 1, 2, 3, 4, 5, 6


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """splitmix64's finaliser of one unsigned 64-bit integer: a bijection in which each bit depends on all others."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def key(*words: int) -> int:
    """One unsigned 64-bit key from several integers; their order counts."""
    state = 0
    for word in words:
        state = mix(state + GOLDEN_GAMMA + (word & MASK_64))
    return state


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's shifts the sign in."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix_tensor(values: Tensor) -> Tensor:
    """`mix` of each element of an int64 tensor (the bits are those of the unsigned result)."""
    values = (values ^ _shift_right(values, 30)) * _signed(MIX_1)
    values = (values ^ _shift_right(values, 27)) * _signed(MIX_2)
    return values ^ _shift_right(values, 31)


def permutation(seed: int, epoch: int, length: int) -> Tensor:
    """Order of the samples in an epoch: int64 [length], on the CPU. Sorts by hash, so that no generator is involved."""
    start = key(PERMUTATION, seed, epoch)
    hashes = mix_tensor(torch.arange(length, dtype=torch.int64) * _signed(GOLDEN_GAMMA) + _signed(start))
    return torch.argsort(hashes, stable=True)


@functools.cache
def _lanes(seed: int, number: int, device: torch.device) -> Tensor:
    """One key for each draw: int64 [number]. Kept, because bringing it to a GPU would make every step wait."""
    return torch.tensor([_signed(key(SAMPLE, seed, lane)) for lane in range(number)], device=device)


def draws(seed: int, positions_N: Tensor, number: int) -> Tensor:
    """`number` uniform floats in [0, 1) for each position: float32 [N, number], each a multiple of 2**-24."""
    bits = mix_tensor((positions_N * _signed(GOLDEN_GAMMA))[:, None] ^ _lanes(seed, number, positions_N.device))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def uniform(*words: int) -> float:
    """One uniform number in [0, 1), a multiple of 2**-24, from a key of these words."""
    return (key(*words) >> 40) * 2.0**-24


@functools.cache
def _lane(seed: int, lane: int) -> int:
    return key(SAMPLE, seed, lane)


def draw(seed: int, position: int, lane: int) -> float:
    """`draws(seed, [position], lane + 1)[0, lane]`, bit by bit, without a tensor: for one image at a time."""
    return (mix(((position * GOLDEN_GAMMA) & MASK_64) ^ _lane(seed, lane)) >> 40) * 2.0**-24


def integers(uniform: Tensor, low: int, high: int) -> Tensor:
    """Uniform floats in [0, 1) as integers in low..high, both included: int64."""
    return (uniform * (high - low + 1)).to(torch.int64) + low


def seed_generators(*words: int, device: torch.device) -> None:
    """Seeds what a model draws inside itself (initial weights, dropout), on the CPU and on `device`.

    32 bits, because the CPU's generator ignores the others; the generators themselves instead of `torch.manual_seed`,
    which visits every device (75 to 225 us against 2).
    """
    seed = key(*words) & 0xFFFFFFFF
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
