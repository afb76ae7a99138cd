"""The file in memory: byte for byte what safetensors itself writes, and what is not finite is named."""

import math
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pitstop.checkpoint import Image

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensors() -> dict[str, Tensor]:
    """Of every kind that a model or an optimizer keeps, in every order of memory."""
    make = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 5, 5, generator=make)
    found = {
        "contiguous": weight.clone(),
        "channels last": weight.clone().to(memory_format=torch.channels_last),
        "transposed": torch.randn(5, 7, generator=make).t(),
        "scalar": torch.tensor(3.5),
        "steps": torch.tensor(12345),
        "empty": torch.empty(0, 3),
        "expanded": torch.randn(3, 1, generator=make).expand(3, 4),
        "slice": torch.randn(10, generator=make)[1:9:2],
        "bytes": torch.arange(7, dtype=torch.uint8),
        "int16": torch.arange(-3, 3, dtype=torch.int16),
        "int32": torch.arange(5, dtype=torch.int32),
        "bool": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=make)),
        "negative zero": torch.tensor([-0.0, 0.0]),
    }
    found |= {f"{dtype}": torch.randn(3, 3, generator=make).to(dtype) for dtype in FLOATS}
    limits = {
        f"limits of {t}": torch.tensor([torch.finfo(t).max, torch.finfo(t).min, torch.finfo(t).tiny], dtype=t)
        for t in FLOATS
    }
    return found | limits


def own(live: dict[str, Tensor]) -> bytes:
    """What the library makes of copies."""
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in live.items()}
    return safetensors.torch.save(copies, metadata={"pitstop": "{}"})


def filled(live: dict[str, Tensor]) -> Image:
    image = Image(live)
    image.fill(live)
    return image


def test_byte_for_byte() -> None:
    live = tensors()
    image = filled(live)
    assert image.arrange() == set()
    assert bytes(image.file) == own(live)
    back = safetensors.torch.load(bytes(image.file))
    assert back.keys() == live.keys()
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (live[name].dtype, live[name].shape)
        assert torch.equal(tensor, live[name]), name


@pytest.mark.parametrize("name", tensors())
def test_each_kind_alone(name: str) -> None:
    live = {name: tensors()[name]}
    image = filled(live)
    image.arrange()
    assert bytes(image.file) == own(live)


def test_no_tensors() -> None:
    image = filled({})
    assert image.arrange() == set()
    assert bytes(image.file) == own({})


def test_tied_weights() -> None:
    weight = torch.randn(3, 3)
    live = {"a": weight, "b": weight}
    image = filled(live)
    image.arrange()
    assert bytes(image.file) == own(live)


def test_it_is_filled_anew() -> None:
    """The values of `fill`, not those of the making, and not those of afterwards."""
    live = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    image = Image(live)
    for value in (1.0, 2.0):
        for tensor in live.values():
            tensor.fill_(value)
        image.fill(live)
        expected = own(live)
        for tensor in live.values():
            tensor.fill_(-1.0)
        image.arrange()
        assert bytes(image.file) == expected


def test_it_does_not_touch_what_is_live() -> None:
    live = tensors()
    before = {name: tensor.clone() for name, tensor in live.items()}
    filled(live).arrange()
    assert all(torch.equal(live[name], before[name]) for name in live)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(dtype: torch.dtype, value: float) -> None:
    for place in (0, 7, 14):
        live = {"good": torch.ones(15, dtype=dtype), "bad": torch.ones(15, dtype=dtype), "steps": torch.tensor(-1)}
        live["bad"][place] = value
        assert filled(live).arrange() == {"bad"}


def test_every_pattern_of_float16_and_bfloat16() -> None:
    """By torch's own isfinite; every seventh."""
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16).view(dtype)
        live = {str(number): value.clone() for number, value in enumerate(values)}
        assert filled(live).arrange() == {name for name, value in live.items() if not torch.isfinite(value)}


def test_integers_of_all_ones_are_finite() -> None:
    live = {"a": torch.full((3,), -1), "b": torch.full((3,), 255, dtype=torch.uint8), "c": torch.tensor(True)}
    live["d"] = torch.tensor(0x7F800000, dtype=torch.int32)
    assert filled(live).arrange() == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda live: live.update(extra=torch.zeros(1)),
        lambda live: live.pop("a"),
        lambda live: live.update(a=torch.zeros(2, 3, 4, 5, dtype=torch.float64)),
        lambda live: live.update(a=torch.zeros(2, 3, 5, 4)),
        lambda live: live.update(a=torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)),
    ],
    ids=["one more", "one fewer", "another type", "another shape", "another order of memory"],
)
def test_what_it_fits(change: Callable[[dict[str, Tensor]], object]) -> None:
    def live() -> dict[str, Tensor]:
        return {"a": torch.zeros(2, 3, 4, 5), "b": torch.zeros(3)}

    image, other = Image(live()), live()
    assert image.fits(other)
    change(other)
    assert not image.fits(other)
