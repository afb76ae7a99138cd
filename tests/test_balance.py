"""Weights of classes: scikit-learn's own, torch's loss written out, and which metric is named."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch import Tensor, nn

from pitstop.balance import class_weights, criterion, metric, sample_weights

LABELS = torch.tensor([0] * 50 + [1] * 7 + [2] * 1 + [3] * 12)[torch.randperm(70, generator=torch.Generator())]


def test_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    got = class_weights(LABELS, 4)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), expected.astype(np.float32))
    samples = sample_weights(LABELS)
    assert samples.dtype == torch.float64
    np.testing.assert_allclose(samples.numpy(), compute_sample_weight("balanced", LABELS.numpy()), rtol=1e-15)


def test_each_class_weighs_alike_and_an_image_one_on_average() -> None:
    for labels in (LABELS, LABELS[LABELS != 1]):
        samples = sample_weights(labels)
        assert samples.mean().item() == pytest.approx(1.0, rel=1e-12)
        sums = torch.bincount(labels, weights=samples)
        sums = sums[sums > 0]
        torch.testing.assert_close(sums, sums[:1].expand_as(sums))
        assert class_weights(labels, 6)[labels].double().mean().item() == pytest.approx(1.0, rel=1e-6)


def test_a_class_without_images_has_no_weight() -> None:
    weights = class_weights(torch.tensor([0, 0, 2]), 5)
    assert weights.tolist() == [0.75, 0.0, 1.5, 0.0, 0.0]
    assert class_weights(torch.tensor([1, 1]), 2).tolist() == [0.0, 1.0]


def written_out(logits: Tensor, shares: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """-sum of w_c * (share_c * (1 - s) + s / K) * log p_c, over classes and images."""
    shares = shares * (1 - smoothing) + smoothing / shares.shape[1]
    return -(weights * shares * logits.double().log_softmax(1)).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_sum_is_what_it_says_for_labels_and_for_shares(smoothing: float, weighted: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 4), torch.arange(12) % 4
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5]) if weighted else None
    by_class = torch.ones(4) if weights is None else weights
    loss = criterion(weights, smoothing)
    one_hot = nn.functional.one_hot(labels, 4).float()
    expected = written_out(logits, one_hot, by_class, smoothing).float()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, one_hot), expected)
    shares = torch.randn(12, 4).softmax(1)
    torch.testing.assert_close(loss(logits, shares), written_out(logits, shares, by_class, smoothing).float())
    pieces = loss(logits[:5], shares[:5]) + loss(logits[5:], shares[5:])
    torch.testing.assert_close(pieces, loss(logits, shares))


def test_which_metric() -> None:
    def of(*counts: int) -> str:
        return metric("auto", torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)))

    assert [of(10, 10), of(15, 10), of(16, 10), of(7)] == ["accuracy", "accuracy", "macro_f1", "accuracy"]
    assert of(100, 0, 100) == "accuracy", "a class that is only named"
    assert of(500, 450, 10) == "macro_f1"
    assert metric("loss", torch.tensor([0, 1, 1])) == "loss"
