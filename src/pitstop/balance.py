"""Classes with unequal numbers of images: weights for the loss or the stream, and a metric that does not hide it."""

import torch
from torch import Tensor, nn

UNBALANCED = 1.5  # largest class over smallest, from where on accuracy hides what becomes of the small ones


def class_weights(labels_N: Tensor, num_classes: int) -> Tensor:
    """N / (K * n_c) for each class c, K being the number of classes that have images: float32 [num_classes].

    The mean over the images is 1, so that the learning rate keeps its meaning; a class without images has 0. It is what
    scikit-learn calls "balanced" (King and Zeng, Logistic Regression in Rare Events Data, 2001).
    """
    return _weights(labels_N, num_classes).float()


def _weights(labels_N: Tensor, num_classes: int) -> Tensor:
    counts_K = torch.bincount(labels_N, minlength=num_classes).double()
    there_K = counts_K > 0
    return torch.where(there_K, len(labels_N) / (there_K.sum() * counts_K.clamp(min=1)), 0.0)


def sample_weights(labels_N: Tensor) -> Tensor:
    """The weight of each image's class, as in `class_weights`: float64 [N], of mean 1. Drawn by them, all classes come
    equally often."""
    return _weights(labels_N, 0)[labels_N]


def criterion(weights_K: Tensor | None = None, label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """The SUM over the batch of the cross entropy, of int64 labels_B or of shares [B, K].

    With weights, each class's term -share * log(probability) counts as often as its weight says, also what mixing and
    smoothing give to a class; the sum is not divided by the weights.

    Args:
        weights_K: float32, on the device of the logits.
    """
    return nn.CrossEntropyLoss(weights_K, label_smoothing=label_smoothing, reduction="sum")


def metric(wanted: str, labels_N: Tensor) -> str:
    """The metric that is `wanted`; of "auto" "macro_f1" where the largest class has more than 1.5 times the images of
    the smallest, else "accuracy"."""
    if wanted != "auto":
        return wanted
    counts = torch.unique(labels_N, return_counts=True)[1]
    return "macro_f1" if counts.max() > UNBALANCED * counts.min() else "accuracy"
