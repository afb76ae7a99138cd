"""The best evaluation: which it is, its weights, patience, and that a checkpoint at any step leads to the same."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pitstop import state
from pitstop.selection import Best


def weights(step: int) -> dict[str, Tensor]:
    kernel = torch.full((2, 3, 3, 3), float(step)).to(memory_format=torch.channels_last)
    return {"conv.weight": kernel, "bn.num_batches_tracked": torch.tensor(step), "step": torch.ones(1) * step}


def look_all(best: Best, values: list[float]) -> list[bool]:
    return [best.look(10 * n, value, weights(10 * n)) for n, value in enumerate(values, 1)]


def through_a_file(best: Best) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, values = state.split({"best": best})
    stored = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    text = json.dumps(values, allow_nan=False)  # a manifest is JSON that anyone can read
    return stored, json.loads(text)


def back(stored: tuple[dict[str, Tensor], dict[str, Any]], **arguments: Any) -> Best:
    best = Best(**{"metric": "accuracy", "patience": 2} | arguments)
    state.join({"best": best}, *stored)
    return best


def test_only_what_is_better_is_better() -> None:
    best = Best("accuracy")
    assert (best.value, best.step, best.weights) == (None, -1, {})
    assert look_all(best, [0.5, 0.4, 0.5, 0.7, 0.7, math.nan]) == [True, False, False, True, False, False]
    assert (best.value, best.step) == (0.7, 40)
    assert {name: t.flatten()[0].item() for name, t in best.weights.items()} == dict.fromkeys(weights(0), 40)
    assert all(torch.equal(best.weights[name], t) for name, t in weights(40).items())


def test_of_the_loss_the_lowest() -> None:
    best = Best("loss")
    assert look_all(best, [2.0, 2.5, 1.5, 1.5]) == [True, False, True, False]
    assert best.step == 30


def test_weights_are_copied() -> None:
    best, live = Best("accuracy"), weights(1)
    best.look(1, 0.5, live)
    kept = best.weights["conv.weight"]
    live["conv.weight"].zero_()
    assert (kept == 1).all()
    best.look(2, 0.6, weights(2))
    assert best.weights["conv.weight"] is kept, "in place: a checkpoint's layout stays"
    assert (kept == 2).all()
    assert all(t.device.type == "cpu" and t.is_contiguous() and not t.requires_grad for t in best.weights.values())


def test_weights_that_learn_are_taken_without_their_history() -> None:
    best = Best("accuracy")
    model = torch.nn.Linear(2, 2)
    best.look(1, 0.5, dict(model.named_parameters()))
    best.look(2, 0.6, dict(model.named_parameters()))
    assert not any(t.requires_grad for t in best.weights.values())


def test_patience() -> None:
    best = Best("accuracy", patience=2)
    exhausted = []
    for n, value in enumerate([0.5, 0.4, 0.6, 0.6, 0.1, 0.7]):
        best.look(n, value, weights(n))
        exhausted.append(best.exhausted)
    assert exhausted == [False, False, False, False, True, False]
    never = Best("accuracy", patience=0)
    look_all(never, [0.5] + [0.1] * 50)
    assert not never.exhausted


def test_nothing_but_nan_is_exhausted_and_has_no_best() -> None:
    best = Best("accuracy", patience=2)
    assert look_all(best, [math.nan, math.nan]) == [False, False]
    assert best.exhausted
    assert best.weights == {}
    assert json.loads(json.dumps(best.state_dict(), allow_nan=False))["value"] is None


def test_the_same_evaluation_counts_once() -> None:
    best = Best("accuracy", patience=2)
    assert best.look(10, 0.5, weights(10))
    assert best.look(10, 0.5, weights(10)), "it is still the best"
    assert not best.look(20, 0.4, weights(20))
    assert not best.look(20, 0.4, weights(20))
    assert not best.exhausted


def test_an_evaluation_of_the_past_is_a_defect() -> None:
    best = Best("accuracy")
    best.look(20, 0.5, weights(20))
    with pytest.raises(AssertionError, match="in the order of their steps"):
        best.look(10, 0.6, weights(10))


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_restart_anywhere_leads_to_the_same(metric: str) -> None:
    values = [0.1 + 0.2, 0.25, 1 / 3, 1 / 3, math.nan, 0.9, 0.2, 0.1, 0.05]
    through = Best(metric, patience=2)
    seen, saved = [], []
    for step, value in enumerate(values):
        saved.append(through_a_file(through))
        answer = through.look(step, value, weights(step))
        seen.append((answer, through.exhausted, through.value, through.step))
    for start, stored in enumerate(saved):
        again = back(stored, metric=metric)
        for step in range(start, len(values)):
            answer = again.look(step, values[step], weights(step))
            assert (answer, again.exhausted, again.value, again.step) == seen[step], (start, step)
        assert again.weights.keys() == through.weights.keys()
        assert all(torch.equal(again.weights[n], through.weights[n]) for n in through.weights)


def test_what_is_restored_is_a_copy_and_nothing_older_stays() -> None:
    best = Best("accuracy", patience=2)
    empty = through_a_file(best)
    best.look(1, 0.5, weights(1))
    stored = through_a_file(best)
    other = back(stored)
    stored[0]["best/weights/conv.weight"].zero_()
    assert (other.weights["conv.weight"] == 1).all()
    state.join({"best": other}, *empty)
    assert (other.value, other.weights) == (None, {})
    state.join({"best": other}, {}, {})  # a checkpoint of before there was one
    assert (other.value, other.step) == (None, -1)


def test_another_metric_begins_afresh() -> None:
    best = Best("accuracy", patience=2)
    best.look(1, 0.5, weights(1))
    other = back(through_a_file(best), metric="loss")
    assert (other.value, other.weights, other.exhausted) == (None, {}, False)
    assert other.look(2, 3.0, weights(2))
