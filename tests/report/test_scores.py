"""Every figure of an evaluation against scikit-learn, or against a loop that a person can follow."""

import math

import numpy as np
import pytest
from sklearn import metrics

from pitstop.report import scores as ours


@pytest.fixture(params=[2, 10, 37])
def made(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """(logits_NK, labels_N): uneven classes, one without images, one that is never said, equal scores."""
    classes = request.param
    random = np.random.default_rng(classes)
    labels_N = np.minimum(random.integers(0, classes, 500), random.integers(0, classes, 500))
    logits_NK = random.normal(size=(500, classes)).round(1).astype(np.float32)
    logits_NK[np.arange(500), labels_N] += 1.5
    if classes > 2:
        labels_N[labels_N == 3] = 4
        logits_NK[:, 5] = -20
    return logits_NK, labels_N


def test_classes(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, labels_N = made
    found, said_N = ours.scores(logits_NK, labels_N), logits_NK.argmax(1)
    names = range(logits_NK.shape[1])
    assert (found.confusion_KK == metrics.confusion_matrix(labels_N, said_N, labels=names)).all()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels_N, said_N, labels=names, zero_division=0
    )
    assert found.classes.precision_K == pytest.approx(precision)
    assert found.classes.recall_K == pytest.approx(recall)
    assert found.classes.f1_K == pytest.approx(f1)
    assert (found.classes.support_K == support).all()
    there = support > 0
    assert found.classes.macro() == pytest.approx(
        {"precision": precision[there].mean(), "recall": recall[there].mean(), "f1": f1[there].mean()}
    )
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels_N, said_N))


def test_loss_and_top_5(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, labels_N = made
    found, names = ours.scores(logits_NK, labels_N), range(logits_NK.shape[1])
    powers = np.exp(logits_NK.astype(np.float64))
    assert found.loss == pytest.approx(metrics.log_loss(labels_N, powers / powers.sum(1, keepdims=True), labels=names))
    if len(names) <= 10:
        assert found.top5 is None
    else:
        unequal_NK = logits_NK + np.random.default_rng(1).random(logits_NK.shape).astype(np.float32) * 1e-3
        assert ours.scores(unequal_NK, labels_N).top5 == pytest.approx(
            metrics.top_k_accuracy_score(labels_N, unequal_NK, k=5, labels=names)
        )


def test_roc_and_its_area() -> None:
    random = np.random.default_rng(0)
    labels_N = random.integers(0, 2, 300)
    logits_NK = random.normal(size=(300, 2)).round(1).astype(np.float32)  # many equal scores
    logits_NK[:, 1] += labels_N
    found = ours.scores(logits_NK, labels_N)
    scores_N = (logits_NK[:, 1] - logits_NK[:, 0]).astype(np.float64)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels_N, scores_N))
    false_rates, true_rates, _ = metrics.roc_curve(labels_N, scores_N, drop_intermediate=False)
    assert found.roc is not None
    assert found.roc[0] == pytest.approx(false_rates)
    assert found.roc[1] == pytest.approx(true_rates)
    assert ours.scores(logits_NK, np.zeros(300, np.int64)).auc is None
    assert ours.scores(np.eye(3, dtype=np.float32), np.arange(3)).roc is None, "of two classes only"


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(hits: int, total: int, low: float, high: float) -> None:
    assert ours.wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    """The borders p are those for which the share is z standard errors, computed from p, away."""
    for hits, total in ((9412, 10000), (7, 9), (36, 36)):
        for border in ours.wilson(hits, total):
            assert abs(hits / total - border) == pytest.approx(
                1.959964 * math.sqrt(border * (1 - border) / total), abs=1e-7
            )
    assert ours.wilson(0, 0) == (0.0, 1.0)


def test_calibration_by_a_loop(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits_NK, labels_N = made
    found = ours.scores(logits_NK, labels_N)
    error = 0.0
    for index in range(15):
        inside = [n for n in range(500) if index / 15 < found.confidence_N[n] <= (index + 1) / 15]
        if inside:
            sure = sum(found.confidence_N[n] for n in inside) / len(inside)
            right = sum(found.right_N[n] for n in inside) / len(inside)
            error += len(inside) / 500 * abs(sure - right)
    assert found.calibration.error == pytest.approx(error)
    assert found.calibration.count_B.sum() == 500


def test_the_most_confused() -> None:
    matrix = np.array([[5, 2, 0], [3, 9, 2], [0, 0, 4]])
    assert ours.most_confused(matrix, 2) == [(1, 0, 3), (0, 1, 2)]
    assert ours.most_confused(matrix, 10) == [(1, 0, 3), (0, 1, 2), (1, 2, 2)]
    assert ours.most_confused(np.diag([1, 2]), 10) == []


def test_huge_logits_overflow_nothing() -> None:
    found = ours.scores(np.array([[1e30, 0.0], [-1e30, 5.0]], np.float32), np.array([0, 0]))
    assert found.confidence_N.tolist() == [1.0, 1.0]
    assert found.hits == 1
