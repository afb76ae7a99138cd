"""The average of the weights: timm's arithmetic written out, and a restart at any step changes no bit."""

from typing import Any

import pytest
import torch
from ranks import results
from torch import Tensor, nn

from pitstop import checkpoint, models, optim, state
from pitstop.ema import Ema
from pitstop.precision import Precision

LOOK: dict[str, Any] = {"classes": ("a", "b", "c"), "channels": 3, "image_size": 16, "stem": "small"}


class Job:
    def __init__(self, precision: str = "fp32", *, decay: float = 0.6) -> None:
        self.model = models.create("test_resnet", seed=0, **LOOK)
        self.optimizer = optim.sgd(self.model, weight_decay=0.01)
        self.ema = Ema(self.model, decay=decay)
        self.precision = Precision(precision, torch.device("cpu"))
        optim.zero_momentum(self.optimizer)
        optim.set_lr(self.optimizer, 0.1)

    def step(self, step: int, *, bad: bool = False) -> None:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        loss = self.model(images.to(memory_format=torch.channels_last)).float().square().mean()
        self.precision.backward(loss * (float("inf") if bad else 1.0))
        self.precision.update(self.model, self.optimizer)
        self.ema.update(step)

    def stored(self) -> dict[str, Tensor]:
        tensors, _ = state.split({"ema": self.ema})
        tensors |= state.collect(self.model, self.optimizer)
        return {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        state.put_back(self.model, self.optimizer, tensors)
        state.join({"ema": self.ema}, tensors, {"ema": {}})

    def bits(self) -> dict[str, bytes]:
        return {name: t.numpy().tobytes() for name, t in self.stored().items()}


def test_the_average_written_out() -> None:
    """In float64: mean * d + weights * (1 - d), d = min(decay, 1 - (1 + step) ** (-2 / 3)), and 0 in the first step."""
    job = Job(decay=0.6)
    expected: dict[str, Tensor] = {}
    decays = []
    for step in range(8):
        job.step(step, bad=step == 3)
        decay = min(0.6, 1 - (1 + step) ** (-2 / 3))
        decays.append(decay)
        for name, tensor in job.model.state_dict().items():
            now = tensor.double()
            expected[name] = now if step == 0 else expected[name] * decay + now * (1 - decay)
    assert decays[0] == 0
    assert decays[2] < 0.6 == decays[7], "it warms up"
    for name, tensor in job.ema.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, job.model.state_dict()[name])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_restart_anywhere_changes_no_bit(precision: str) -> None:
    """The decay follows from the step, not from the calls; a step whose update is skipped is a step."""
    through, saved = Job(precision), []
    for step in range(6):
        saved.append((through.stored(), through.precision.state_dict()))
        through.step(step, bad=step in (1, 4))
    for start, (tensors, scale) in enumerate(saved):
        again = Job(precision)
        again.restore(tensors)
        again.precision.load_state_dict(scale)
        assert {n: t.numpy().tobytes() for n, t in tensors.items()} == again.bits()
        for step in range(start, 6):
            again.step(step, bad=step in (1, 4))
        assert again.bits() == through.bits(), start


def test_a_skipped_update_is_averaged_all_the_same() -> None:
    job = Job()
    for step in range(3):
        job.step(step)
    before = job.ema.module.get_parameter("fc.weight").clone()
    weights = job.model.get_parameter("fc.weight").clone()
    job.step(3, bad=True)
    assert torch.equal(job.model.get_parameter("fc.weight"), weights)
    assert not torch.equal(job.ema.module.get_parameter("fc.weight"), before)


def test_the_model_is_left_alone_and_the_average_learns_nothing() -> None:
    job, plain = Job(), Job()
    for step in range(3):
        job.step(step)
        plain.ema.update = lambda step: None  # type: ignore[method-assign]
        plain.step(step)
    assert all(torch.equal(a, b) for a, b in zip(job.model.parameters(), plain.model.parameters(), strict=True))
    assert all(p.requires_grad for p in job.model.parameters())
    assert not any(p.requires_grad for p in job.ema.module.parameters())
    assert {id(p) for p in job.ema.module.parameters()}.isdisjoint(id(p) for p in job.model.parameters())


def test_restored_into_the_live_tensors_whose_strides_stay() -> None:
    job = Job()
    job.step(0)
    before = {name: (t.data_ptr(), t.stride()) for name, t in job.ema.state_dict().items()}
    stored = job.stored()
    job.step(1)
    job.restore(stored)
    after = {name: (t.data_ptr(), t.stride()) for name, t in job.ema.state_dict().items()}
    assert after == before
    assert job.ema.module.get_parameter("conv1.0.weight").is_contiguous(memory_format=torch.channels_last)
    kept = job.bits()
    job.ema.load_state_dict({})  # a checkpoint of before there was an average
    assert job.bits() == kept


def test_an_average_of_another_model_is_refused() -> None:
    job = Job()
    with pytest.raises(KeyError):
        job.ema.load_state_dict({"conv1.weight": torch.ones(1)})


def test_a_save_has_the_average_of_its_step(tmp_path: Any) -> None:
    """The writer copies parameters behind the training, but an owner's tensors at once: the next update comes later."""
    job = Job()
    for step in range(2):
        job.step(step)
    live, _ = state.split({"ema": job.ema})
    live |= state.collect(job.model, job.optimizer)
    wanted = {name: t.detach().clone() for name, t in live.items()}
    still = state.changed_by_updates(job.model, live)
    assert {name for name in live if name.startswith("ema/")}.isdisjoint(still)
    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.prepare(live)
    writer.begin(2, live, still, {}, lambda: None)
    job.ema.update(2)  # at once, before the copies behind the training are awaited
    writer.settle()
    job.step(3)
    saved = writer.take(wait=True)
    assert saved is not None
    assert saved.error is None
    found = checkpoint.newest(tmp_path, complain=print)
    assert found is not None
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)
    assert not torch.equal(job.ema.state_dict()["fc.weight"], wanted["ema/fc.weight"])


def on_rank(rank: int, world: int) -> dict[str, bytes]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    ema = Ema(model, decay=0.5)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank))
        wrapped(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
    return {name: p.detach().numpy().tobytes() for name, p in ema.module.named_parameters()}


@pytest.mark.slow
def test_all_ranks_have_the_same_average() -> None:
    first, second = results(2, on_rank)
    assert first == second
