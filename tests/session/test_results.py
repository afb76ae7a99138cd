"""predictions/: what was most wrong, most uncertain and most right, as the model saw it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pitstop.config import RecipeConfig
from pitstop.evaluate import Evaluation
from pitstop.session.results import NUM_PICTURES, Results, worth_a_look, write_predictions


class Images(NamedTuple):
    images_NCHW: Tensor
    labels_N: Tensor
    names: list[str]

    def read(self, spans: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        return (self.images_NCHW[first:end] for first, end in spans)


def evaluated(count: int, classes: int) -> Evaluation:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 2 * torch.eye(classes)[labels]
    return Evaluation({"accuracy": 0.5}, logits, Images(pixels, labels, [f"\u732b {n}.png" for n in range(count)]))


def test_rows_are_those_that_numpy_finds() -> None:
    evaluation = evaluated(500, 4)
    logits, labels = evaluation.logits_NK.double().numpy(), evaluation.labels_N.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ordered = np.sort(shares, axis=1)
    wrong = [n for n in range(500) if shares[n].argmax() != labels[n]]
    mistakes = sorted(wrong, key=lambda n: -ordered[n, -1])[:NUM_PICTURES]
    unsure = sorted(range(500), key=lambda n: ordered[n, -1] - ordered[n, -2])[:NUM_PICTURES]
    hits = sorted(set(range(500)) - set(wrong), key=lambda n: -ordered[n, -1])[:NUM_PICTURES]
    rows = worth_a_look(evaluation.logits_NK, evaluation.labels_N).tolist()
    assert set(rows) == {*mistakes, *unsure, *hits}
    assert len(rows) == len(set(rows))
    assert rows[:NUM_PICTURES] == mistakes


def test_few_images_and_two_classes() -> None:
    assert sorted(worth_a_look(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])).tolist()) == [0, 1]


def test_what_is_written_and_that_the_newest_replaces_it(tmp_path: Path) -> None:
    for count in (40, 90):
        evaluation = evaluated(count, 3)
        about = {"step": count, "split": "test", "weights": "final", "classes": ["a", "b", "\u732b"]}
        write_predictions(tmp_path, evaluation, about)
        assert [path.name for path in tmp_path.iterdir()] == ["predictions"]
        outcome = load_file(tmp_path / "predictions" / "predictions.safetensors")
        pictures = load_file(tmp_path / "predictions" / "pictures.safetensors")
        told = json.loads((tmp_path / "predictions" / "about.json").read_text())
        assert outcome["logits_NK"].equal(evaluation.logits_NK)
        assert outcome["labels_N"].equal(evaluation.labels_N)
        rows = pictures["rows_M"]
        assert pictures["images_MCHW"].equal(evaluation.images.images_NCHW[rows])
        assert told == about | {"names": [f"\u732b {row}.png" for row in rows.tolist()]}


class Weighed(RecipeConfig):
    weights: str = "pretrained"


@pytest.mark.parametrize(("scale", "number"), [(1.0, 0), (255.0, 1)])
def test_images_that_the_weights_do_not_expect_are_named_once(scale: float, number: int) -> None:
    said: list[str] = []
    attempt = SimpleNamespace(leads=True, say=said.append, run=SimpleNamespace(is_open=False))
    model = torch.nn.Flatten()
    Results(Weighed(), cast(Any, attempt)).look_at_input(model)
    for _ in range(3):
        model(scale * torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert len(said) == number
    assert all("normalisation does not fit" in line for line in said)
