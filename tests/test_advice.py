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
    assert feed(watch(), [4.0, 3.0, 2.0]) == []


def test_accuracy_near_chance() -> None:
    one = watch(counts=(900, 100, 100, 100))
    assert one.evaluation(1, 0.25, [0.25] * 4, [100] * 4) == [], "too early"
    (line,) = one.evaluation(2, 0.75, [1.0, 0, 0, 0], [300, 33, 33, 33])
    assert "75.0 %" in line
    assert one.evaluation(3, 0.75, [1.0, 0, 0, 0], [300, 33, 33, 33]) == []


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


def test_a_device_that_waits() -> None:
    lines = feed(watch(), [1.0, 0.9, 0.8, 0.7], waited=0.6)
    assert len(lines) == 1
    assert "60 %" in lines[0]
    assert "--cache True" in lines[0]


def test_a_normalisation_that_does_not_fit() -> None:
    assert "mean 100.0" in advice.of_input([100.0] * 3, [50.0] * 3, "pretrained")[0]
    assert advice.of_input([100.0] * 3, [50.0] * 3, "none") == []
