"""Advice comes where it is due, with evidence and a flag that exists, and a healthy run hears nothing."""

import math
from typing import Literal

import pytest

from pitstop import advice
from pitstop.config import RecipeConfig


class Full(RecipeConfig):
    class_weights: Literal["none", "balanced"] = "none"
    weights: str = "pretrained"
    augment: str = "light"
    workers: str = "2"
    cache: bool = False
    patience: int = 0


FULL, PLAIN = advice.Flags(Full()), advice.Flags(RecipeConfig())
CLASSES = ("box", "bottle", "can", "bag")


def watch(flags: advice.Flags = FULL, counts: tuple[int, ...] = (500, 500, 500, 500)) -> advice.Watch:
    return advice.Watch(flags, counts, CLASSES)


def feed(one: advice.Watch, losses: list[float], *, accuracy: float = math.nan, waited: float = 0.0) -> list[str]:
    return [
        line
        for number, loss in enumerate(losses, 1)
        for line in one.row(number / 4, {"loss": loss, "accuracy": accuracy}, waited)
    ]


def test_a_healthy_run_hears_nothing() -> None:
    one = watch()
    assert advice.of_classes([500, 400, 300, 250], CLASSES, FULL) == []
    assert advice.of_input([0.1, -0.2, 0.0], [0.9, 1.1, 1.0], "pretrained") == []
    losses = [1.39 * 0.9**number + 0.05 * (number % 2) for number in range(40)]
    assert feed(one, losses, waited=0.05) == []
    for epoch, accuracy in ((1, 0.3), (2, 0.6), (5, 0.8), (10, 0.9)):
        assert one.row(epoch, {"loss": 0.1, "accuracy": accuracy + 0.05}) == []
        assert one.evaluation(epoch, accuracy, [accuracy - 0.1] * 4, [100] * 4) == []


def test_unbalanced_and_small_classes() -> None:
    lines = advice.of_classes([900, 31, 500, 300], CLASSES, FULL)
    assert len(lines) == 2
    assert "29 to 1" in lines[0]
    assert "bottle 31" in lines[0]
    assert "--class_weights balanced" in lines[0]
    assert "1 of 4 classes have fewer than 200 images (bottle 31)" in lines[1]
    assert "--augment strong" in lines[1]
    assert "--weights" not in lines[1], "it is pretrained already"
    assert "--" not in "".join(advice.of_classes([900, 31, 500, 300], CLASSES, PLAIN)), "the recipe has no such flags"


def test_unbalanced_by_four_an_empty_class_and_many_small_ones() -> None:
    (line,) = advice.of_classes([800, 250, 1000, 800], CLASSES, FULL)
    assert "4 to 1 (can 1,000, bottle 250 images)" in line
    assert "300 to 1" in advice.of_classes([300, 0], ["a", "b"], FULL)[0]
    (line,) = advice.of_classes([100 + number for number in range(7)], "abcdefg", FULL)
    assert "7 of 7 classes have fewer than 200 images (a 100, b 101, c 102, d 103, e 104, ...)" in line


@pytest.mark.parametrize(
    ("losses", "said", "flag"),
    [
        ([1.386 + 0.001 * (number % 3) for number in range(20)], "flat: 1.39", "--peak_lr 0.02"),
        ([1.39, 1.2, 1.0, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 3.0, 4.0, 5.0], "jumps", "--clip_grad_norm 1"),
    ],
)
def test_the_loss(losses: list[float], said: str, flag: str) -> None:
    lines = feed(watch(), losses)
    assert len(lines) == 1, "each thing is said once"
    assert said in lines[0]
    assert flag in lines[0]


def test_a_loss_that_falls_from_above_chance_to_it_has_time() -> None:
    assert feed(watch(), [4.0 - 0.2 * number for number in range(13)]) == []


def test_nothing_is_said_of_a_loss_before_there_is_enough_of_it() -> None:
    assert feed(watch(), [1.386] * 3) == [], "in the first epoch"
    one = watch()
    for loss in [1.386] * 20:
        assert one.row(0.9, {"loss": loss}) == [], "in the first epoch, often recorded"
    one = watch()
    for epoch, loss in enumerate([1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 3.0, 4.0, 5.0], 1):
        assert one.row(epoch, {"loss": loss}) == [], "nine rows"


def test_guessing_knows_how_often_each_class_is_there() -> None:
    (line,) = feed(watch(counts=(900, 100, 100, 100)), [0.84] * 12)
    assert "guessing has 0.84" in line


def test_accuracy_near_chance() -> None:
    one = watch(counts=(900, 100, 100, 100))
    assert one.evaluation(1, 0.25, [0.25] * 4, [100] * 4) == [], "too early"
    (line,) = one.evaluation(2, 0.75, [1.0, 0, 0, 0], [300, 33, 33, 33])
    assert "75.0 %" in line
    assert one.evaluation(3, 0.75, [1.0, 0, 0, 0], [300, 33, 33, 33]) == []
    recalls, supports = [1.0, 0.1, 0.1, 0.04], [100] * 4
    (line,) = watch().evaluation(2, 0.28, recalls, supports)
    assert "28.0 %" in line, "of 400 images 25 % and 28 % are the same"
    assert watch().evaluation(2, 0.31, recalls, supports) == [], "and 31 % are more"


def test_learned_by_heart_and_classes_that_are_not_found() -> None:
    one = watch()
    feed(one, [1.0, 0.5], accuracy=0.99)
    (line,) = one.evaluation(3, 0.8, [0.3, 0.95, math.nan, 0.9], [50, 50, 0, 50])
    assert "99.0 %" in line
    assert "80.0 %" in line
    assert one.evaluation(4, 0.8, [0.95, 0.3, math.nan, 0.9], [50, 50, 0, 50]) == [], "another class: it was chance"
    assert one.evaluation(5, 0.8, [0.95, 0.3, math.nan, 0.9], [5, 5, 0, 5]) == [], "too few to say"
    one.evaluation(6, 0.8, [0.95, 0.3, math.nan, 0.9], [50, 50, 0, 50])
    (line,) = one.evaluation(7, 0.8, [0.95, 0.3, math.nan, 0.9], [50, 50, 0, 50])
    assert "bottle 30 %" in line
    assert "--class_weights balanced" in line


def test_no_flag_is_named_that_was_turned_already() -> None:
    """More decay, weights of another run, resampling: the person knows, and 0.005 would be a step back."""
    turned = {"weight_decay": 0.05, "patience": 3, "clip_grad_norm": 0.5, "augment": "strong"}
    config = FULL.config.model_copy(update=turned | {"weights": "runs/other", "class_weights": "resample"})
    flags = advice.Flags(config)
    assert "--" not in "".join(advice.of_classes([900, 31, 500, 300], CLASSES, flags))
    one = advice.Watch(flags, [500] * 4, CLASSES)
    feed(one, [1.0, 0.5], accuracy=0.99)
    (line,) = one.evaluation(3, 0.7, [0.7] * 4, [50] * 4)
    assert line.endswith("on others: more images help most")
    (line,) = feed(one, [0.5] * 9 + [5.0, 5.0])
    assert line.endswith(": --peak_lr 0.02"), line


def test_few_held_out_images_say_nothing() -> None:
    assert watch().evaluation(3, 2 / 3, [1.0, 1.0, 0.0, math.nan], [1, 1, 1, 0]) == []


@pytest.mark.parametrize(
    ("recall", "accuracy", "support", "said"),
    [(0.3, 0.8, 50, 1), (0.3, 0.8, 9, 0), (0.3, 0.45, 50, 0), (0.55, 0.95, 50, 0)],
    ids=["missed", "few images", "all are low", "more than half are found"],
)
def test_a_class_that_is_not_found(recall: float, accuracy: float, support: int, said: int) -> None:
    one, recalls, supports = watch(), [recall, 0.95, 0.95, 0.95], [support, 500, 500, 500]
    assert one.evaluation(2, accuracy, recalls, supports) == []
    assert len(one.evaluation(3, accuracy, recalls, supports)) == said


def test_a_device_that_waits() -> None:
    assert feed(watch(), [1.0, 0.9], waited=0.9) == [], "for workers that start up"
    lines = feed(watch(), [1.0, 0.9, 0.8, 0.7], waited=0.6)
    assert len(lines) == 1
    assert "60 %" in lines[0]
    assert "--cache True" in lines[0]


def test_a_normalisation_that_does_not_fit() -> None:
    assert "mean 100.0" in advice.of_input([100.0] * 3, [50.0] * 3, "pretrained")[0]
    assert advice.of_input([100.0] * 3, [50.0] * 3, "none") == []
    for mean, std in ((2.0, 1.0), (-2.0, 1.0), (0.0, 0.01), (0.0, 5.0)):
        assert len(advice.of_input([0.0, 0.0, mean], [1.0, 1.0, std], "pretrained")) == 1, "one is enough"
