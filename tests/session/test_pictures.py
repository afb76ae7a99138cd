"""predictions/ and samples/: what was most wrong, uncertain and right, and what the model was trained with."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import evaluated
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pitstop.session.pictures import (
    NUM_PICTURES,
    NUM_SHOWN,
    Samples,
    beside,
    stretched,
    worth_a_look,
    write_predictions,
)

CLASSES = ["a", "b", "\u732b", "d"]


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
        assert "\u732b" in (tmp_path / "predictions" / "about.json").read_text(), "to be read by people too"


@pytest.mark.parametrize("channels", [3, 1])
def test_the_samples_of_the_last_row(channels: int, tmp_path: Path) -> None:
    """Each is a file, the picture of its row, and its caption is what numpy makes of the logits."""
    evaluation = evaluated(500, 4, channels)
    about = {"step": 7, "split": "test", "weights": "final", "classes": CLASSES}
    assert write_predictions(tmp_path, evaluation, about) == {}
    assert not (tmp_path / "predictions" / "samples").exists()
    (name, shown), *nothing = write_predictions(tmp_path, evaluation, about, shown=True).items()
    assert (name, nothing) == ("predictions", [])
    assert len(shown) == 3 * NUM_SHOWN
    logits, labels = evaluation.logits_NK.double().numpy(), evaluation.labels_N.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    pixels = evaluation.images.images_NCHW.permute(0, 2, 3, 1).numpy().squeeze()
    row_of = {image.tobytes(): row for row, image in enumerate(pixels)}
    wrong = []
    for picture in shown:
        image = np.asarray(Image.open(tmp_path / picture["path"]))
        row = row_of[image.tobytes()]
        said, true = CLASSES[shares[row].argmax()], CLASSES[labels[row]]
        expected = f"{true} ({100 * shares[row].max():.0f} %)"
        wrong.append(said != true)
        assert picture["caption"] == (expected if said == true else expected.replace(true, f"{true}, taken for {said}"))
    assert wrong[:NUM_SHOWN] == [True] * NUM_SHOWN
    assert wrong[-NUM_SHOWN:] == [False] * NUM_SHOWN


def test_images_that_are_no_pictures_are_not_shown(tmp_path: Path) -> None:
    about = {"step": 7, "split": "test", "weights": "final", "classes": CLASSES}
    assert write_predictions(tmp_path, evaluated(50, 4, channels=5), about, shown=True) == {}
    assert (tmp_path / "predictions" / "about.json").exists()


def test_normalised_images_are_made_visible() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 5, 4, generator=generator) * torch.tensor([1.0, 40.0, 0.0]).view(3, 1, 1) - 7
    seen = stretched(images)
    assert seen.dtype == torch.uint8
    for channel in (0, 1):
        values = images[:, channel].numpy()
        by_hand = 255 * (values - values.min()) / (values.max() - values.min())
        assert np.abs(seen[:, channel].numpy() - by_hand).max() <= 0.501
        assert (seen[:, channel].min(), seen[:, channel].max()) == (0, 255)
    assert (seen[:, 2] == 0).all(), "one value everywhere"


def no_words(text: str) -> None:
    raise AssertionError(text)


def test_the_first_images_in_training_are_kept_and_no_others(tmp_path: Path) -> None:
    samples, model = Samples(tmp_path, 5, no_words), nn.Flatten()
    assert samples.media(5) == {}
    samples.look(model)
    generator = torch.Generator().manual_seed(0)
    model.eval()
    model(torch.zeros(20, 3, 6, 7))
    first = torch.rand(20, 3, 6, 7, generator=generator)
    first[:2, :, 0, 0] = torch.tensor([0.0, 1.0]).view(2, 1)  # so that least and greatest are known
    model.train()
    assert model(first).equal(first.flatten(1))
    model(torch.zeros(20, 3, 6, 7))
    media = samples.media(5)
    assert media == {"media": {"augmented": [{"path": f"samples/{number:02}.png"} for number in range(16)]}}
    for number, shown in enumerate(media["media"]["augmented"]):
        pixels = np.asarray(Image.open(tmp_path / shown["path"]))
        assert np.abs(pixels - 255 * first[number].permute(1, 2, 0).numpy()).max() <= 0.501
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples"]


def test_only_the_first_row_names_them_whichever_attempt_writes_it(tmp_path: Path) -> None:
    samples, model = Samples(tmp_path, 5, no_words), nn.Flatten()
    samples.look(model)
    model(torch.rand(3, 1, 4, 4))
    later = Samples(tmp_path / "another machine", 5, no_words)
    later.load_state_dict(json.loads(json.dumps(samples.state_dict())))
    for step in (3, 5):  # a run of three steps has its only row at its end
        assert len(later.media(step)["media"]["augmented"]) == 3
        assert later.media(step) == samples.media(step)
    assert later.media(6) == later.media(10) == {}
    later.load_state_dict({})  # of a checkpoint that knows nothing of samples
    assert later.media(5) == {}


@pytest.mark.parametrize("inputs", [(torch.rand(4, 7),), (torch.rand(4, 5, 6, 6),), ([1, 2],), ()])
def test_what_is_no_picture_is_left_alone(inputs: tuple[Any, ...], tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, *anything: Any, word: str = "") -> None: ...

    samples, model = Samples(tmp_path, 5, no_words), Model()
    samples.look(model)
    model(*inputs, word="x")
    assert samples.media(5) == {}
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_a_line(tmp_path: Path) -> None:
    said: list[str] = []
    samples, model = Samples(tmp_path / "gone", 5, said.append), nn.Flatten()
    samples.look(model)
    (tmp_path / "gone").touch()  # no directory: nothing can be written below it
    model(torch.rand(3, 1, 4, 4))
    assert [line.partition(":")[0] for line in said] == ["samples/ was not written"]
    assert samples.media(5) == {}


def test_values_that_are_no_numbers_do_not_end_a_run(tmp_path: Path) -> None:
    samples, model = Samples(tmp_path, 5, no_words), nn.Flatten()
    samples.look(model)
    model(torch.full((2, 3, 4, 4), math.nan))
    assert len(samples.media(5)["media"]["augmented"]) == 2


def test_what_runs_beside_says_why_it_failed() -> None:
    assert beside(60, "json.tool", "--help") == ""
    assert "No module named" in beside(60, "pitstop.no_such_module")
    assert "timed out" in beside(0.01, "json.tool")
