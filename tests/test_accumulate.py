"""The gradient of micro-batches and of ranks against that of one whole batch, in float64."""

import itertools
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ranks import results
from torch import Tensor, nn
from torch.nn import functional

from pitstop.accumulate import accumulate
from pitstop.data.stream import cut


class Plain:
    """float64, no loss scale."""

    def autocast(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Slice(NamedTuple):
    seed: int
    step: int
    global_size: int
    micro_batches: list[tuple[Tensor, Tensor]]


def data(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 5, (size,), generator=generator)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 6, 3), nn.GELU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(6 * 36, 5)]
    return nn.Sequential(*layers).double()


def piece(size: int, borders: list[int], step: int = 0, seed: int = 0) -> Slice:
    images, labels = data(size)
    return Slice(seed, step, size, [(images[a:b], labels[a:b]) for a, b in itertools.pairwise(borders)])


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")


def gradient(model: nn.Module) -> np.ndarray:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy()


def by_hand(size: int) -> tuple[np.ndarray, float]:
    """Gradient and mean loss of the whole batch at once; label smoothing written out."""
    model, (images, labels) = network(), data(size)
    log_p = model(images).log_softmax(1)
    target = functional.one_hot(labels, 5).double() * 0.9 + 0.1 / 5
    loss = -(target * log_p).sum() / size
    loss.backward()
    return gradient(model), loss.item()


@pytest.mark.parametrize("borders", [[0, 14], [0, 2, 14], [0, 4, 8, 11, 14], [0, 7, 14]])
def test_micro_batches_add_up_to_the_whole_batch(borders: list[int]) -> None:
    model = network()
    figures = accumulate(model, piece(14, borders), criterion, precision=Plain())
    loss = figures["loss"]
    hits = (network()(data(14)[0]).argmax(1) == data(14)[1]).sum().item()
    assert figures["accuracy"].item() == pytest.approx(hits / 14)
    expected, mean_loss = by_hand(14)
    np.testing.assert_allclose(gradient(model), expected, rtol=1e-11, atol=1e-14)
    assert loss.item() == pytest.approx(mean_loss, rel=1e-6)
    assert (loss.dtype, loss.shape, loss.requires_grad) == (torch.float32, (), False)


def test_it_adds_to_the_gradients_that_are_there() -> None:
    model = network()
    for _ in range(2):
        accumulate(model, piece(6, [0, 6]), criterion, precision=Plain())
    np.testing.assert_allclose(gradient(model), 2 * by_hand(6)[0], rtol=1e-11, atol=1e-14)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    gradients = []
    for seed, step, disturb in ((0, 4, 1), (0, 4, 2), (0, 5, 1), (1, 4, 1)):
        model = network(dropout=0.5)
        torch.manual_seed(disturb)
        accumulate(model, piece(8, [0, 4, 8], step, seed), criterion, precision=Plain())
        gradients.append(gradient(model))
    assert np.array_equal(gradients[0], gradients[1])
    assert not np.allclose(gradients[0], gradients[2])
    assert not np.allclose(gradients[0], gradients[3])


class Watch(nn.Module):
    """Counts the micro-batches that had been through when gradients were communicated."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.forwards, self.reductions = network(dropout=0.0), 0, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        result: Tensor = self.inner(images)
        return result


def on_rank(rank: int, world: int, size: int, micro_parts: int) -> dict[str, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    watch = Watch()
    ddp = nn.parallel.DistributedDataParallel(watch, find_unused_parameters=True, broadcast_buffers=False)

    def hook(state: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        watch.reductions.append(watch.forwards)
        return allreduce_hook(state, bucket)

    ddp.register_comm_hook(None, hook)
    borders = cut(size, world)
    start, stop = borders[rank], borders[rank + 1]
    whole = piece(size, [start + border for border in cut(stop - start, micro_parts)])
    loss = accumulate(ddp, whole, criterion, precision=Plain())["loss"]
    dropped = nn.parallel.DistributedDataParallel(network(dropout=0.5), broadcast_buffers=False)
    torch.manual_seed(0)
    with dropped.no_sync():
        images, labels = data(4)  # the same images on each rank
        accumulate(dropped, Slice(0, 1, 4, [(images, labels)]), criterion, precision=Plain())
    mask = functional.dropout(torch.ones(64), 0.5).numpy()  # what the generator gives after the step was seeded
    return {"gradient": gradient(watch), "loss": loss.item(), "reductions": watch.reductions, "mask": mask}


@pytest.mark.parametrize(("world", "size", "micro_parts"), [(2, 13, 2), (3, 16, 1), (3, 20, 3)])
def test_ranks_together_have_the_gradient_of_one_process(world: int, size: int, micro_parts: int) -> None:
    ranks = results(world, on_rank, size, micro_parts)
    expected, mean_loss = by_hand(size)
    for rank in ranks:
        np.testing.assert_allclose(rank["gradient"], expected, rtol=1e-11, atol=1e-14)
        assert set(rank["reductions"]) == {micro_parts}, "only the last backward pass communicates"
    assert sum(rank["loss"] for rank in ranks) == pytest.approx(mean_loss, rel=1e-6)
    masks = {rank["mask"].tobytes() for rank in ranks}
    assert len(masks) == world, "each rank has dropout of its own"
