"""What is watched of a step: the loss, where a recipe has one."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pitstop.config import RecipeConfig
from pitstop.health import LIMIT
from pitstop.session.wishes import Wishes


@pytest.mark.parametrize(
    ("metrics", "overflow", "ill"),
    [
        ({"loss": math.nan, "accuracy": 0.5}, 0.0, True),
        ({"loss": math.inf}, 0.0, True),
        ({"loss": 1.0, "accuracy": 0.5}, 0.0, False),
        ({"loss": 1.0, "accuracy": 0.5}, 1.0, True),
        ({"loss": 1.0, "margin": math.inf}, 0.0, False),
        ({"reward": math.nan, "steps": 1.0}, 0.0, True),
        ({"reward": 1.0, "steps": math.nan}, 0.0, True),
        ({"reward": 1.0}, 0.0, False),
    ],
)
def test_what_ends_a_run(metrics: dict[str, float], overflow: float, ill: bool) -> None:
    precision = SimpleNamespace(overflow=torch.tensor(overflow), name="fp32")
    place = SimpleNamespace(world=1, device=torch.device("cpu"), rank=0, precision=precision)
    asked: list[str] = []
    stopper = SimpleNamespace(request=lambda why, code: asked.append(why), look=lambda: 0, save_soon=False)
    saver = SimpleNamespace(last_good="none", due_now=lambda: False)
    wishes = Wishes(RecipeConfig(), cast(Any, place), cast(Any, stopper), cast(Any, saver))
    for step in range(1, LIMIT + 1):
        wishes.step({name: torch.tensor(value) for name, value in metrics.items()})
        wishes.after(step, 1.0)
    assert bool(asked) == ill
