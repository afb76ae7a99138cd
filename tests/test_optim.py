"""Parameter groups, learning rates at known points, and the momentum of a first step that fp16 skips."""

import math
from fractions import Fraction
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pitstop import models, optim
from pitstop.config import RecipeConfig


def lr(step: int, total: int = 1000, steps_per_epoch: float = 100.0, **flags: Any) -> float:
    return optim.learning_rate(RecipeConfig(peak_lr=2.0, **flags), step, total, steps_per_epoch)


def test_norms_and_biases_have_no_decay_and_nothing_is_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, plain = optim.param_groups(model, 0.05)
    named = {id(p): name for name, p in model.named_parameters()}
    assert [named[id(p)] for p in decayed["params"]] == ["0.weight", "3.weight"]
    assert [named[id(p)] for p in plain["params"]] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_an_update_without_gradients_is_decay_of_the_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(optim.param_groups(model, 0.1), lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.9 if name == "0.weight" else 1.0))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("triangle", {0: 0.4, 100: 1.2, 200: 2.0, 600: 1.0, 1000: 0.0}),
        ("cosine", {0: 2.0, 250: 1 + math.sqrt(0.5), 500: 1.0, 1000: 0.0}),
        ("constant", {0: 2.0, 200: 2.0, 999: 2.0}),
    ],
)
def test_learning_rates_at_known_points(schedule: str, expected: dict[int, float]) -> None:
    for step, value in expected.items():
        assert lr(step, schedule=schedule) == pytest.approx(value, abs=1e-12), step
    if schedule == "triangle":
        values = [lr(step, schedule=schedule) for step in range(1001)]
        assert values.index(max(values)) == 200
        assert values[:201] == sorted(values[:201])
        assert values[200:] == sorted(values[200:], reverse=True)


def test_step_schedule() -> None:
    flags = {"schedule": "step", "step_epochs": 3, "step_factor": 0.5}
    assert [lr(step, **flags) for step in (0, 299, 300, 599, 600, 900)] == [2.0, 2.0, 1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("step_epochs", [1, 3, 10, 0.5, 1.5])
@pytest.mark.parametrize("batch_size", [48, 50, 64, 100, 500])
def test_step_schedule_drops_at_the_first_step_that_reaches_the_border(step_epochs: float, batch_size: int) -> None:
    """Exactly there, also where the quotients of floats are a little off (135 images, batch 50, 3 epochs, step 81)."""
    for length in (100, 135, 170, 1437, 50_000):
        steps = {math.ceil(Fraction(step_epochs) * k * length / batch_size) for k in range(1, 12)}
        for step in sorted({s + d for s in steps for d in (-1, 0, 1) if s + d >= 0}):
            drops = math.floor(Fraction(step * batch_size, length) / Fraction(step_epochs))
            value = lr(step, 10**9, length / batch_size, schedule="step", step_epochs=step_epochs, step_factor=0.5)
            assert value == 2.0 * 0.5**drops, (length, step)


def test_set_lr_reaches_every_group() -> None:
    optimizer = optim.sgd(nn.Linear(2, 2), weight_decay=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    optim.set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def first_step_skipped(*, zeroed: bool, poison: float = float("nan")) -> tuple[list[torch.Tensor], nn.Module]:
    """Momenta after a first step whose gradient overflowed, and the model after a second, good one.

    What memory a new buffer finds is chance: `empty_like` is made to find `poison`.
    """
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    if zeroed:
        optim.zero_momentum(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    real_empty_like = torch.empty_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda *a, **k: real_empty_like(*a, **k).fill_(poison))
        momenta: list[torch.Tensor] = []
        for gradient in (float("inf"), 0.5):
            for p in model.parameters():
                p.grad = torch.full_like(p, gradient * scaler.get_scale())
            scaler.scale(torch.ones(()))  # the scaler comes into being with the first loss
            scaler.step(optimizer)
            scaler.update()
            momenta = momenta or [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    return momenta, model


def test_momentum_after_a_first_step_that_was_skipped() -> None:
    momenta, model = first_step_skipped(zeroed=True)
    assert all((momentum == 0).all() for momentum in momenta)
    torch.manual_seed(0)
    plain = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for p in plain.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_zero_momentum_is_needed() -> None:
    """Without it torch leaves the new buffer as it was allocated. Should torch mend that, `zero_momentum` may go."""
    momenta, model = first_step_skipped(zeroed=False)
    assert any(momentum.isnan().any() for momentum in momenta)
    assert any(p.isnan().any() for p in model.parameters())


def test_zero_momentum_changes_no_first_step_and_no_other_optimizer() -> None:
    weights = []
    for zeroed in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = optim.sgd(model, weight_decay=0.01)
        optim.set_lr(optimizer, 0.1)
        if zeroed:
            optim.zero_momentum(optimizer)
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    for other in (torch.optim.Adagrad(nn.Linear(2, 2).parameters()), torch.optim.SGD(nn.Linear(2, 2).parameters())):
        before = len(other.state)
        optim.zero_momentum(other)
        assert len(other.state) == before


def test_zero_momentum_keeps_what_is_there() -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.sgd(model, weight_decay=0.0)
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(2, 2)
    optim.zero_momentum(optimizer)
    assert (optimizer.state[model.weight]["momentum_buffer"] == 1).all()
    assert (optimizer.state[model.bias]["momentum_buffer"] == 0).all()


ADAMW: list[dict[str, Any]] = [
    {},
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"amsgrad": True},
    {"amsgrad": True, "fused": True},
]


def adamw_steps(flags: dict[str, Any], *, zeroed: bool) -> tuple[torch.optim.AdamW, nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(optim.param_groups(model, 0.1), lr=0.01, **flags)
    if zeroed:
        optim.zero_momentum(optimizer)
    begins = {n: {k: (v, v.clone()) for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    for step in range(3):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, model, begins


@pytest.mark.parametrize("flags", ADAMW, ids=str)
def test_adamw_begins_with_the_state_that_torch_would_make(flags: dict[str, Any]) -> None:
    """The same keys, in the same order, types, places and strides; torch goes on with these very tensors, and to the
    same bits."""
    plain, expected, _ = adamw_steps(flags, zeroed=False)
    ours, model, begins = adamw_steps(flags, zeroed=True)
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), name
        mine, theirs = ours.state[p], plain.state[q]
        assert list(mine) == list(theirs)
        for key, value in mine.items():
            tensor, first = begins[name][key]
            assert (first == 0).all()
            assert tensor is value
            assert torch.equal(value, theirs[key]), (name, key)
            assert (value.dtype, value.device, value.stride()) == (
                theirs[key].dtype,
                theirs[key].device,
                theirs[key].stride(),
            )


def test_adamw_keeps_its_count_where_torch_does_with_other_defaults() -> None:
    for flags in ({}, {"fused": True}):
        torch.set_default_dtype(torch.float64)
        try:
            _, model, begins = adamw_steps(flags, zeroed=True)
            plain, expected, _ = adamw_steps(flags, zeroed=False)
        finally:
            torch.set_default_dtype(torch.float32)
        first = next(iter(expected.parameters()))
        assert begins["0.weight"]["step"][0].dtype == plain.state[first]["step"].dtype
        assert len(list(model.parameters())) == 4


def test_adamw_state_is_not_begun_twice() -> None:
    optimizer, model, _ = adamw_steps({}, zeroed=True)
    before = {p: dict(optimizer.state[p]) for p in model.parameters()}
    optim.zero_momentum(optimizer)
    assert all(optimizer.state[p][key] is value for p, entry in before.items() for key, value in entry.items())


def test_adamw_equals_torchs_own() -> None:
    """With the decay on what has two dimensions, written out as two groups."""
    weights = []
    for ours in (True, False):
        model = models.create("test_resnet", classes=("a", "b"), channels=3, image_size=16, stem="small", seed=0)
        if ours:
            optimizer = optim.adamw(model, weight_decay=0.3, betas=(0.8, 0.95))
            optim.set_lr(optimizer, 0.01)
        else:
            wide, flat = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
            groups = [{"params": wide, "weight_decay": 0.3}, {"params": flat, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), foreach=True)
        for step in range(3):
            model(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_mambaout"])
def test_the_backbone_learns_at_a_rate_of_its_own(name: str) -> None:
    model = timm.create_model(name, num_classes=7)
    head = {id(p) for p in model.get_classifier().parameters()}
    groups = optim.param_groups(model, 0.1, backbone_lr=0.25)
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(map(id, model.parameters())), "each once"
    for group in groups:
        assert all((id(p) in head) == (group["lr_scale"] == 1.0) for p in group["params"])
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])
    assert groups[0]["lr_scale"] == 1.0
    assert any(p.shape[0] == 7 for p in groups[0]["params"]), "the first rate is the one that is recorded"
    for make in (optim.sgd, optim.adamw):
        optimizer = make(model, weight_decay=0.1, backbone_lr=0.25)
        optim.set_lr(optimizer, 0.5)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert all(rate == (0.5 if p in head else 0.125) for p, rate in rates.items())


def test_one_rate_for_all_leaves_the_groups_as_they_were() -> None:
    """Order and number of the groups decide the order of sums inside a fused kernel."""
    model = timm.create_model("test_resnet", num_classes=7)
    decayed, plain = optim.param_groups(model, 0.1, backbone_lr=1.0)
    assert [id(p) for p in decayed["params"]] == [id(p) for p in model.parameters() if p.ndim >= 2]
    assert [id(p) for p in plain["params"]] == [id(p) for p in model.parameters() if p.ndim < 2]
