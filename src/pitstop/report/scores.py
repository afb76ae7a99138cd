"""Figures out of logits and labels: intervals, classes, curves, calibration. In numpy, in float64."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
CALIBRATION_BINS = 15  # as in Guo et al. (ICML 2017)


def wilson(hits: float, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, JASA 22, 1927): right for few samples and near 0 and 1 too."""
    if total <= 0:
        return 0.0, 1.0
    share, z2 = hits / total, Z_95**2
    middle = share + z2 / (2 * total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, (middle - half) / (1 + z2 / total)), min(1.0, (middle + half) / (1 + z2 / total))


def softmax(logits_NK: NDArray[np.float32]) -> Floats:
    logits = logits_NK.astype(np.float64)
    powers: Floats = np.exp(logits - logits.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def confusion(predicted_N: Ints, labels_N: Ints, classes: int) -> Ints:
    """[K, K]: how many of the class of the row were taken for that of the column."""
    return np.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True)
class PerClass:
    """Of each class, shares in 0..1; 0 where nothing was said to be of the class, or nothing is."""

    precision_K: Floats
    recall_K: Floats
    f1_K: Floats
    support_K: Ints

    def macro(self) -> dict[str, float]:
        """Means over the classes that have images."""
        there_K = self.support_K > 0
        shares = {"precision": self.precision_K, "recall": self.recall_K, "f1": self.f1_K}
        return {name: float(share_K[there_K].mean()) for name, share_K in shares.items()}


def per_class(confusion_KK: Ints) -> PerClass:
    hits_K = confusion_KK.diagonal().astype(np.float64)
    said_K, support_K = confusion_KK.sum(0), confusion_KK.sum(1)
    return PerClass(
        precision_K=hits_K / np.maximum(said_K, 1),
        recall_K=hits_K / np.maximum(support_K, 1),
        f1_K=2 * hits_K / np.maximum(said_K + support_K, 1),
        support_K=support_K,
    )


def most_confused(confusion_KK: Ints, limit: int) -> list[tuple[int, int, int]]:
    """(class, taken for, how often), the most frequent first; ties in the order of the classes."""
    wrong = confusion_KK - np.diag(confusion_KK.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(int(index) // len(wrong), int(index) % len(wrong)) for index in order]
    return [(true, said, int(wrong[true, said])) for true, said in pairs if wrong[true, said]]


def roc(scores_N: Floats, positive_N: NDArray[np.bool_]) -> tuple[Floats, Floats] | None:
    """(false positive rates, true positive rates) at each threshold, equal scores together; None if one of the two
    classes has no images."""
    if positive_N.all() or not positive_N.any():
        return None
    order = np.argsort(-scores_N, kind="stable")
    scores, positive = scores_N[order], positive_N[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits, alarms = np.cumsum(positive)[ends], np.cumsum(~positive)[ends]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def area(x: Floats, y: Floats) -> float:
    """Below a curve, by trapezia."""
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


@dataclass(frozen=True)
class Calibration:
    """Of each bin of confidence that has images: mean confidence, accuracy, number of images."""

    confidence_B: Floats
    accuracy_B: Floats
    count_B: Ints

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of accuracy from confidence over the images."""
        return float((self.count_B * np.abs(self.accuracy_B - self.confidence_B)).sum() / self.count_B.sum())


def calibration(confidence_N: Floats, right_N: NDArray[np.bool_]) -> Calibration:
    """Bins of equal width, each with its upper border: (0, 1/15], (1/15, 2/15] ..."""
    bin_N = np.clip(np.ceil(confidence_N * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    count = np.bincount(bin_N, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bin_N, weights, CALIBRATION_BINS) for weights in (confidence_N, right_N.astype(np.float64))]
    there = count > 0
    return Calibration(sums[0][there] / count[there], sums[1][there] / count[there], count[there])


def cross_entropy(logits_NK: NDArray[np.float32], labels_N: Ints) -> float:
    """Mean over the images, in nats."""
    logits = logits_NK.astype(np.float64)
    highest_N = logits.max(1)
    whole_N = highest_N + np.log(np.exp(logits - highest_N[:, None]).sum(1))
    return float((whole_N - logits[np.arange(len(labels_N)), labels_N]).mean())


@dataclass(frozen=True)
class Scores:
    """All that the report says of an evaluation."""

    probabilities_NK: Floats
    predicted_N: Ints
    labels_N: Ints
    confusion_KK: Ints
    classes: PerClass
    calibration: Calibration
    loss: float
    roc: tuple[Floats, Floats] | None  # of two classes, the second being the one that is looked for

    @property
    def right_N(self) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.predicted_N == self.labels_N
        return right

    @property
    def confidence_N(self) -> Floats:
        confidence: Floats = self.probabilities_NK.max(1)
        return confidence

    @property
    def hits(self) -> int:
        return int(self.right_N.sum())

    @property
    def images(self) -> int:
        return len(self.labels_N)

    @property
    def accuracy(self) -> float:
        return self.hits / self.images

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.images)

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five likeliest; None where there are so few classes that it says
        nothing."""
        if len(self.confusion_KK) <= 10:
            return None
        own_N1 = np.take_along_axis(self.probabilities_NK, self.labels_N[:, None], 1)
        return float(((self.probabilities_NK > own_N1).sum(1) < 5).mean())

    @property
    def auc(self) -> float | None:
        return area(*self.roc) if self.roc else None


def scores(logits_NK: NDArray[np.float32], labels_N: Ints) -> Scores:
    classes = logits_NK.shape[1]
    probabilities_NK, predicted_N = softmax(logits_NK), logits_NK.argmax(1)
    matrix_KK = confusion(predicted_N, labels_N, classes)
    return Scores(
        probabilities_NK=probabilities_NK,
        predicted_N=predicted_N,
        labels_N=labels_N,
        confusion_KK=matrix_KK,
        classes=per_class(matrix_KK),
        calibration=calibration(probabilities_NK.max(1), predicted_N == labels_N),
        loss=cross_entropy(logits_NK, labels_N),
        roc=roc((logits_NK[:, 1] - logits_NK[:, 0]).astype(np.float64), labels_N == 1) if classes == 2 else None,
    )
