"""Evaluation against a plain loop over single images; over ranks, against one process."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ranks import results
from sklearn.metrics import f1_score, recall_score
from torch import Tensor, nn
from torch.nn import functional

from pitstop.evaluate import Evaluation, evaluate, macro

COUNT = 29


class Images(NamedTuple):
    images_NCHW: Tensor
    labels_N: Tensor

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        return (self.images_NCHW[first:end] for first, end in spans)


def images(count: int = COUNT) -> Images:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 4, (count,), generator=generator))


def normalise(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.float() / 128 - 1


def network(statistics: int = 0) -> nn.Module:
    """Same weights always; `statistics` chooses the buffers of batch normalisation."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    generator = torch.Generator().manual_seed(statistics)
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.train()


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """One image moved, pixel by pixel; the gap shows what lies as far on the other side of the border pixel."""
    size = image.shape[-1]
    result = np.empty_like(image)
    for y in range(size):
        for x in range(size):
            v, u = y - down, x - right
            v, u = -v if v < 0 else v, -u if u < 0 else u
            v, u = 2 * (size - 1) - v if v >= size else v, 2 * (size - 1) - u if u >= size else u
            result[:, y, x] = image[:, v, u]
    return result


def by_hand(model: nn.Module, test: Images) -> dict[str, float]:
    """One image after the other. The weights of the views are those of airbench's `infer_mirror_translate`."""
    model.eval()
    logits: dict[str, list[Tensor]] = {"accuracy": [], "accuracy_mirror": [], "accuracy_mirror_shift": []}
    with torch.no_grad():
        for image in normalise(test.images_NCHW).numpy():

            def net(view: np.ndarray) -> Tensor:
                return model(torch.from_numpy(np.ascontiguousarray(view))[None])[0].double()

            def mirror(view: np.ndarray) -> Tensor:
                return 0.5 * net(view) + 0.5 * net(view[:, :, ::-1])

            shifts = torch.stack([mirror(shifted(image, -1, -1)), mirror(shifted(image, 1, 1))]).mean(0)
            logits["accuracy"].append(net(image))
            logits["accuracy_mirror"].append(mirror(image))
            logits["accuracy_mirror_shift"].append(0.5 * mirror(image) + 0.5 * shifts)
    model.train()
    result = {
        name: sum(int(row.argmax()) == int(y) for row, y in zip(all_, test.labels_N, strict=True)) / len(test.labels_N)
        for name, all_ in logits.items()
    }
    losses = [-row.log_softmax(0)[y].item() for row, y in zip(logits["accuracy"], test.labels_N, strict=True)]
    return result | {"loss": sum(losses) / len(losses)}


TTA = ("mirror", "mirror_shift")


@pytest.mark.parametrize("batch_size", [1, 7, COUNT, 1000])
def test_equals_a_plain_loop(batch_size: int) -> None:
    model, test = network(), images()
    got = evaluate(model, test, normalise=normalise, batch_size=batch_size, tta=TTA)
    expected = by_hand(model, test)
    assert got == pytest.approx(expected, rel=1e-5)
    assert list(got) == ["loss", "accuracy", "accuracy_mirror", "accuracy_mirror_shift"]


def test_the_views_matter_here() -> None:
    """Otherwise the test above proves little: in a larger set the three accuracies are not all the same."""
    model, test = network(), images(150)
    got = evaluate(model, test, normalise=normalise, tta=TTA)
    assert got == pytest.approx(by_hand(model, test), rel=1e-5)
    assert len({got["accuracy"], got["accuracy_mirror"], got["accuracy_mirror_shift"]}) == 3


def test_without_tta_there_is_one_pass() -> None:
    model, passes = network(), list[int]()
    model.register_forward_hook(lambda *_: passes.append(1))
    assert list(evaluate(model, images(), normalise=normalise, batch_size=10)) == ["loss", "accuracy"]
    assert len(passes) == 3


def test_the_model_is_as_it_was() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, images(), normalise=normalise, tta=TTA)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def on_rank(rank: int, world: int, count: int) -> dict[str, Any]:
    """As in a run: the ranks' batch statistics differ. Every image that is looked at is remembered."""
    model, seen = network(statistics=rank), list[int]()
    ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
    model.load_state_dict(network(statistics=rank).state_dict())  # DDP gave all of them rank 0's
    test = images(count)
    known = {image.numpy().tobytes(): i for i, image in enumerate(test.images_NCHW)}

    def look(images_BCHW: Tensor) -> Tensor:
        seen.extend(known[image.numpy().tobytes()] for image in images_BCHW)
        return normalise(images_BCHW)

    result = evaluate(ddp, test, normalise=look, batch_size=4, tta=TTA)
    buffers = {name: buffer.numpy() for name, buffer in model.named_buffers()}
    return {"result": result, "seen": seen, "buffers": buffers, "training": ddp.training and model.training}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_images_and_have_one_result(world: int) -> None:
    assert COUNT % world
    ranks = results(world, on_rank, COUNT)
    assert sorted(i for rank in ranks for i in rank["seen"]) == list(range(COUNT)), "each image once"
    assert [i for rank in ranks for i in rank["seen"]] == list(range(COUNT))
    alone = by_hand(network(statistics=0), images())
    others = by_hand(network(statistics=1), images())
    assert abs(alone["loss"] - others["loss"]) > 1e-3, "the statistics matter"
    for rank in ranks:
        assert rank["result"] == ranks[0]["result"]
        assert rank["result"] == pytest.approx(alone, rel=1e-5)
        assert rank["training"]
        for name, buffer in network(statistics=0).named_buffers():
            assert np.array_equal(rank["buffers"][name], buffer.numpy())


def test_more_ranks_than_images() -> None:
    ranks = results(3, on_rank, 2)
    alone = by_hand(network(statistics=0), images(2))
    for rank in ranks:
        assert rank["result"] == pytest.approx(alone, rel=1e-5)


def test_accuracy_and_loss_of_logits_that_are_known() -> None:
    """A model that returns what the pixels say: 3 of 4 right."""

    class Says(nn.Module):
        def forward(self, images_BCHW: Tensor) -> Tensor:
            return images_BCHW.flatten(1)

    pixels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for i, pixel in enumerate((0, 1, 2, 2)):
        pixels.view(4, 4)[i, pixel] = 5
    labels = torch.tensor([0, 1, 2, 3])
    got = evaluate(Says(), Images(pixels, labels), normalise=lambda images: images.float(), batch_size=3)
    good, bad = np.log(np.exp(5) + 3) - 5, np.log(np.exp(5) + 3)
    assert got == pytest.approx({"accuracy": 0.75, "loss": (3 * good + bad) / 4})
    assert functional.cross_entropy(pixels.view(4, 4).double(), labels).item() == pytest.approx(got["loss"])


def evaluation(predicted: Sequence[int], labels: Sequence[int], classes: int) -> Evaluation:
    logits_NK = torch.zeros(len(labels), classes)
    logits_NK[range(len(labels)), predicted] = 1
    return Evaluation({}, logits_NK, Images(torch.empty(0), torch.tensor(labels)))


def test_means_over_classes_as_scikit_learn_has_them() -> None:
    """Over the classes that have images: nobody is of class 5, and nobody is taken for class 3."""
    drawn = np.random.default_rng(0)
    labels = drawn.choice([0, 1, 2, 3, 4], 60, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    predicted = np.where(drawn.random(60) < 0.5, labels, drawn.choice([0, 1, 2, 4, 5], 60))
    predicted[predicted == 3] = 0
    found = macro(*evaluation(predicted.tolist(), labels.tolist(), 6).counts_K)
    options = {"average": "macro", "labels": range(5), "zero_division": 0}
    assert found["macro_recall"] == pytest.approx(recall_score(labels, predicted, **options))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, **options))


def test_very_many_classes_take_no_matrix_of_them() -> None:
    found = macro(*evaluation([7, 199_999, 7], [7, 199_999, 5], 200_000).counts_K)
    assert found == pytest.approx({"macro_recall": 2 / 3, "macro_f1": (2 / 3 + 1 + 0) / 3})
