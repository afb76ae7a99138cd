"""Live tensors out of a model and its optimizer, and back: bits of the next steps, strides, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ranks import results
from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop import models, optim, state
from pitstop.errors import UserError

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def network(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 4)
    )
    return model.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a file gives them back: contiguous, in memory of their own."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def bits(model: nn.Module, optimizer: Optimizer) -> dict[str, bytes]:
    """By torch's own state_dict, not by `collect`."""
    result = {name: tensor.contiguous().numpy().tobytes() for name, tensor in model.state_dict().items()}
    for number, entry in optimizer.state_dict()["state"].items():
        result |= {f"{number} {key}": np.ascontiguousarray(value.numpy()).tobytes() for key, value in entry.items()}
    return result


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_put_back_goes_on_to_the_same_bits(kind: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 0, 3)
    tensors = stored(state.collect(model, optimizer))
    at_three = bits(model, optimizer)
    train(model, optimizer, 3, 6)
    again = network(seed=9)
    other = OPTIMIZERS[kind](again.parameters())
    state.put_back(again, other, tensors)
    assert bits(again, other) == at_three
    live, fresh = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert live.keys() == fresh.keys()
    for number, entry in live.items():
        for key, value in entry.items():
            got = fresh[number][key]
            assert (got.stride(), got.dtype, got.device) == (value.stride(), value.dtype, value.device), (number, key)
    weight = again.get_submodule("0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    train(again, other, 3, 6)
    assert bits(again, other) == bits(model, optimizer)


def test_the_saved_tensors_are_copied() -> None:
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, 0, 2)
    tensors = stored(state.collect(model, optimizer))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    state.put_back(model, optimizer, tensors)
    assert [p.data_ptr() for p in model.parameters()] == pointers, "into the live tensors"
    train(model, optimizer, 2, 4)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_names_of_what_is_collected() -> None:
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    assert set(state.collect(model, optimizer)) == {f"model/{name}" for name in model.state_dict()}
    train(model, optimizer, 0, 1)
    expected = {f"model/{name}" for name in model.state_dict()} | {
        f"optimizer/{name}/{key}" for name, _ in model.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
    }
    collected = state.collect(model, optimizer)
    assert set(collected) == expected
    assert collected["model/0.weight"].data_ptr() == model.get_submodule("0").weight.data_ptr(), "no copy is made"


def test_an_optimizer_that_keeps_more_than_tensors_is_refused() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimizer.state[next(model.parameters())]["count"] = 3
    with pytest.raises(TypeError, match="SGD keeps count as int; a tensor was expected"):
        state.collect(model, optimizer)


def test_another_model_is_refused_and_nothing_is_touched() -> None:
    saved = stored(state.collect(network(), OPTIMIZERS["sgd"](network().parameters())))
    wide = network(seed=1, width=8)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    optimizer = OPTIMIZERS["sgd"](wide.parameters())
    with pytest.raises(
        UserError, match=r"of another model: 7 tensors differ, the first is model/0.bias \(\[6\].*\[8\]"
    ):
        state.put_back(wide, optimizer, saved)
    missing = {name: tensor for name, tensor in saved.items() if name != "model/4.bias"}
    with pytest.raises(UserError, match=r"1 tensors differ, the first is model/4.bias \(absent saved, \[4\] here"):
        state.put_back(network(), OPTIMIZERS["sgd"](network().parameters()), missing)
    extra = saved | {"model/9.weight": torch.ones(1)}
    with pytest.raises(UserError, match=r"model/9.weight \(\[1\] saved, absent here"):
        state.put_back(network(), OPTIMIZERS["sgd"](network().parameters()), extra)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())
    assert not optimizer.state


class Owner:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.values = values


def test_split_and_join() -> None:
    owners = {"ema": Owner(weight=torch.ones(2), decay=0.9), "early": Owner(best=None), "em": Owner(a=torch.zeros(1))}
    tensors, values = state.split(owners)
    assert {name: t.tolist() for name, t in tensors.items()} == {"ema/weight": [1, 1], "em/a": [0]}
    assert values == {"ema": {"decay": 0.9}, "early": {"best": None}, "em": {}}
    fresh = {name: Owner() for name in owners}
    state.join(fresh, tensors | {"model/0.weight": torch.ones(1)}, values)
    assert fresh["ema"].values["weight"].tolist() == [1, 1]
    assert fresh["ema"].values["decay"] == 0.9
    assert fresh["early"].values == {"best": None}
    assert list(fresh["em"].values) == ["a"]


def on_rank(rank: int, world: int) -> tuple[dict[str, list[float]], Any, dict[str, str]]:
    mine = {"a": torch.arange(3.0), "step": torch.tensor(7, dtype=torch.int64)} if rank == 0 else {}
    tensors, values = state.broadcast(mine, {"step": 7} if rank == 0 else None, torch.device("cpu"))
    return {k: v.tolist() for k, v in tensors.items()}, values, {k: str(v.dtype) for k, v in tensors.items()}


def test_every_rank_gets_rank_zeros_tensors() -> None:
    """Only rank 0 has read the disk."""
    expected = ({"a": [0.0, 1.0, 2.0], "step": 7}, {"step": 7}, {"a": "torch.float32", "step": "torch.int64"})
    assert results(2, on_rank) == [expected, expected]


def test_what_nothing_but_the_optimizer_changes() -> None:
    """A forward pass in training changes the buffers of batch normalisation, and no name that is said to be still."""
    model = models.create("test_resnet", classes=("a", "b"), channels=3, image_size=32, stem="small", seed=0)
    optimizer = optim.sgd(model, weight_decay=5e-4)
    optim.zero_momentum(optimizer)
    tensors = state.collect(model, optimizer)
    still = state.changed_by_updates(model, tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    model.train()(torch.rand(4, 3, 32, 32)).sum().backward()
    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not changed & still
    assert changed | still == tensors.keys()
