"""What becomes of figures beside their rows: best/, predictions/, advice."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from evaluations import Images, evaluated
from safetensors.torch import load_file
from torch import Tensor

from pitstop.config import RecipeConfig
from pitstop.evaluate import Evaluation
from pitstop.selection import Best
from pitstop.session.results import Results


class Weighed(RecipeConfig):
    weights: str = "pretrained"


class Spoken:
    """An attempt, as far as results ask for it, and what it says."""

    def __init__(self, path: Path = Path(), *, leads: bool = True) -> None:
        self.leads, self.said = leads, list[str]()
        self.run = SimpleNamespace(path=path, is_open=False)
        self.seconds_left = lambda: None

    def say(self, text: str) -> None:
        self.said.append(text)


def results(attempt: Spoken, **flags: Any) -> Results:
    return Results(Weighed(**flags), cast(Any, attempt))


@pytest.mark.parametrize(("scale", "number"), [(1.0, 0), (255.0, 1)])
def test_images_that_the_weights_do_not_expect_are_named_once(scale: float, number: int) -> None:
    attempt, model = Spoken(), torch.nn.Flatten()
    results(attempt).look_at_input(model, 3)
    for _ in range(3):
        model(scale * torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert len(attempt.said) == number
    assert all("normalisation does not fit" in line for line in attempt.said)


@pytest.mark.parametrize("flags", [{"weights": "none"}, {"compile": True}])
def test_a_model_that_knows_nothing_or_is_compiled_gets_no_hook(flags: dict[str, Any]) -> None:
    model = torch.nn.Flatten()
    results(Spoken(), **flags).look_at_input(model, 3)
    assert not model._forward_pre_hooks


def best_one(attempt: Spoken, patience: int = 0) -> tuple[Results, Best, torch.nn.Linear]:
    """Results that keep the best weights of a small model."""
    best, model, kept = Best("accuracy", patience), torch.nn.Linear(1, 1, bias=False), results(attempt)
    kept.keep(best, model, {"model": "m"})
    return kept, best, model


def judged(kept: Results, model: torch.nn.Linear, step: int, accuracy: float) -> bool:
    """An evaluation of weights that are `step`."""
    torch.nn.init.constant_(model.weight, step)
    return kept.evaluated(step, step / 10, {"accuracy": accuracy})


def weight_and_step(path: Path) -> tuple[float, int]:
    """What is in best/."""
    weight = load_file(path / "best" / "model.safetensors")["weight"]
    return weight.item(), json.loads((path / "best" / "model.json").read_text())["step"]


@pytest.mark.parametrize("leads", [True, False])
def test_the_best_is_kept_and_patience_ends_on_every_rank(tmp_path: Path, leads: bool) -> None:
    kept, _, model = best_one(Spoken(tmp_path, leads=leads), patience=2)
    went_on = [judged(kept, model, step, accuracy) for step, accuracy in ((10, 0.5), (20, 0.7), (30, 0.6), (40, 0.7))]
    assert went_on == [True, True, True, False]
    assert (weight_and_step(tmp_path) if leads else [*tmp_path.iterdir()]) == ((20.0, 20) if leads else [])


def test_what_a_killed_attempt_found_later_is_not_the_best(tmp_path: Path) -> None:
    kept, best, model = best_one(Spoken(tmp_path))
    judged(kept, model, 10, 0.5)
    state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in best.state_dict().items()}
    judged(kept, model, 20, 0.9)
    assert weight_and_step(tmp_path) == (20.0, 20)
    kept, best, _ = best_one(Spoken(tmp_path))
    best.load_state_dict(state)
    kept.restored()
    assert weight_and_step(tmp_path) == (10.0, 10)


def test_a_full_disk_costs_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    attempt = Spoken(tmp_path)
    kept, *_ = best_one(attempt)
    for name in ("write_final", "write_predictions"):
        monkeypatch.setattr(f"pitstop.session.results.{name}", full)
    assert kept.evaluated(10, 1.0, evaluated(40, 3))
    lines = [line for line in attempt.said if "No space left on device" in line]
    assert [line.split()[0] for line in lines] == ["best/", "predictions/"]
    monkeypatch.undo()
    kept.restored()
    assert weight_and_step(tmp_path)[1] == 10, "later there is room"


@pytest.mark.parametrize("selects", [True, False])
def test_predictions_say_whose_they_are(tmp_path: Path, selects: bool) -> None:
    attempt, model = Spoken(tmp_path), torch.nn.Linear(1, 1)
    kept = best_one(attempt)[0] if selects else results(attempt)

    def told() -> list[object]:
        about = json.loads((tmp_path / "predictions" / "about.json").read_text())
        return [about[key] for key in ("step", "split", "weights")]

    kept.evaluated(10, 1.0, evaluated(40, 3))
    assert told() == [10, "val" if selects else "test", "last"]
    kept.finished(20, evaluated(40, 3), "test", model, {"model": "m"})
    assert told() == [20, "test", "best" if selects else "final"]
    assert load_file(tmp_path / "final" / "model.safetensors")["weight"].equal(model.weight)


@pytest.mark.parametrize("leads", [True, False])
def test_advice_is_about_the_class_that_is_not_found(tmp_path: Path, leads: bool) -> None:
    """Of b a tenth is found, and whatever is called b is one. One rank speaks."""
    attempt = Spoken(tmp_path, leads=leads)
    kept, labels = results(attempt), torch.arange(3).repeat_interleave(100)
    train = SimpleNamespace(classes=("a", "b", "c"), labels_N=labels.repeat(5), fingerprint={})
    kept.given(cast(Any, train), [], None)
    taken_for = labels.clone()
    taken_for[100:190] = 2
    images = Images(torch.zeros(300, 3, 2, 2, dtype=torch.uint8), labels, [str(n) for n in range(300)])
    result = Evaluation({"accuracy": 0.7}, torch.eye(3)[taken_for], images)
    for epoch in (2.0, 3.0):
        kept.evaluated(int(10 * epoch), epoch, result)
    assert len(attempt.said) == leads
    assert all(line.startswith("advice: ") and "(b 10 %;" in line for line in attempt.said)
