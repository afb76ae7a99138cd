"""How many images at once: halving, putting back, pieces of an evaluation, and the probe."""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pitstop import memory
from pitstop.data.stream import micro_borders
from pitstop.memory import Memory, Shortage


class Plain:
    """No loss scale."""

    def autocast(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Limited(nn.Module):
    """No memory for more than `most` images, which shows after the first norm has seen them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, list[int]()
        self.first, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 4)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.seen.append(len(images_BCHW))
        features = self.norm(self.first(images_BCHW))
        if len(images_BCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        logits: Tensor = self.last(self.drop(features.mean((2, 3))))
        return logits


@dataclass(frozen=True)
class Slice:
    images: int
    micro_batch: int

    @property
    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        borders = micro_borders(self.images, self.micro_batch)
        return [(torch.zeros(b - a, 1, 4, 4), torch.zeros(b - a, dtype=torch.int64)) for a, b in pairwise(borders)]


def state(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(a.equal(b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("images", range(2, 70))
def test_halving_ends_at_two(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cut has smaller pieces than the one before, none of one image, for every size of a slice."""
    monkeypatch.setattr(memory, "release", lambda: None)  # which looks through all objects of the tests, each time
    said: list[Shortage] = []
    keeper, batch = Memory(0, said.append), Slice(images, 0)
    while True:
        pieces = [len(labels) for _, labels in keeper.cut(batch).micro_batches]
        assert sum(pieces) == images
        assert min(pieces) >= 2
        keeper.halve(batch, "no memory")
        assert said[-1].images == max(pieces)
        if said[-1].fewer == 0:
            break
        assert max(len(labels) for _, labels in keeper.cut(batch).micro_batches) < max(pieces)
    assert said[-1].images in (2, 3)
    assert len(said) <= 7
    assert [shortage.where for shortage in said] == ["training"] * len(said)


def test_what_ends_the_attempt_comes_after_all_is_put_back() -> None:
    model = Limited(4)

    def refuse(shortage: Shortage) -> None:
        raise KeyError(shortage.images)

    keeper = Memory(0, refuse)
    keeper.attach(model)
    before = state(model)
    keeper.begin()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.randn(8, 1, 4, 4))
    assert model.norm.num_batches_tracked == 1
    with pytest.raises(KeyError, match="8"):
        keeper.halve(Slice(8, 0), "no memory")
    assert_equal(state(model), before)
    assert model.first.weight.grad is None


def test_an_evaluation_in_pieces() -> None:
    """It remembers what fits, and the last piece may have one image."""
    said: list[Shortage] = []
    keeper, model = Memory(0, said.append), Limited(5).eval()
    images_BCHW = torch.randn(13, 1, 4, 4)
    with torch.no_grad():
        found = keeper.in_pieces(lambda piece_BCHW: model(piece_BCHW)[None], images_BCHW)
        assert model.seen == [13, 6, 3, 3, 3, 3, 1]
        again = keeper.in_pieces(lambda piece_BCHW: model(piece_BCHW)[None], images_BCHW[:4])
        model.most = 13
        whole = model(images_BCHW)[None]
    assert model.seen[7:] == [3, 1, 13]
    assert torch.allclose(found, whole, atol=1e-6)
    assert torch.allclose(again, whole[:, :4], atol=1e-6)
    assert [(s.images, s.fewer, s.where) for s in said] == [(13, 6, "evaluation"), (6, 3, "evaluation")]


@pytest.mark.parametrize("most", [100, 3])
def test_the_probe_changes_no_state(most: int) -> None:
    model = Limited(most)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keeper = Memory(0, lambda shortage: None)
    keeper.attach(model)
    before, generator = state(model), torch.get_rng_state()
    why = keeper.fits(model, optimizer, Plain(), (1, 4, 4), [6, 6, 5])
    assert why == ("" if most == 100 else "CUDA out of memory. Tried to allocate 1.00 GiB.")
    assert model.seen == ([6, 6] if most == 100 else [6]), "the largest piece, and once more beside gradients"
    assert_equal(state(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.get_rng_state().equal(generator)
    assert not optimizer.state


def test_the_probe_has_room_for_what_the_optimizer_will_keep() -> None:
    parameters = [nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(3, 5, dtype=torch.float16))]
    adam = torch.optim.AdamW(parameters)
    assert memory._bytes_to_come(parameters, adam) == 2 * (40 + 30)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    assert memory._bytes_to_come(parameters, adam) == 0
    assert memory._bytes_to_come(parameters, torch.optim.SGD(parameters, lr=0.1)) == 0
