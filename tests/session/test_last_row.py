"""What a row has beside its figures: accuracies of classes, and at the end pictures."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from evaluations import Images
from PIL import Image
from torch import Tensor

from pitstop.config import RecipeConfig
from pitstop.evaluate import Evaluation
from pitstop.session.results import Results


class Train(NamedTuple):
    """A training set, as far as it says what the classes are."""

    classes: tuple[str, ...]
    fingerprint: dict[str, Any] = {}  # noqa: RUF012

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(len(self.classes)).repeat_interleave(300)


class Somebody:
    """An attempt on rank 0 that may take its time."""

    leads, config = True, RecipeConfig()

    def __init__(self, path: Path, seconds_left: float | None = None) -> None:
        self.said: list[str] = []
        self.run = SimpleNamespace(is_open=False, path=path)
        self.seconds_left = lambda: seconds_left

    def say(self, text: str) -> None:
        self.said.append(text)


def results(path: Path, classes: Sequence[str], seconds_left: float | None = None, **flags: Any) -> Results:
    made = Results(RecipeConfig(**flags), cast(Any, Somebody(path, seconds_left)))
    made.given(cast(Any, Train(tuple(classes))), [], None)
    return made


def evaluated(labels: list[int], said: list[int], classes: int) -> Evaluation:
    logits = 4.0 * torch.eye(classes)[torch.tensor(said)]
    pixels = torch.arange(len(labels) * 3 * 16, dtype=torch.int64).remainder(251).to(torch.uint8).view(-1, 3, 4, 4)
    return Evaluation({"loss": 1.0, "accuracy": 0.5}, logits, Images(pixels, torch.tensor(labels)))


def test_accuracies_of_classes(tmp_path: Path) -> None:
    """Counted by hand; a class without images is left out; `dog` has two of three."""
    result = evaluated([0, 0, 0, 1, 3], [0, 2, 0, 2, 3], 4)
    fields = results(tmp_path, ["dog", "cat", "none", "frog"]).by_class(result)
    assert fields == {"class_accuracy": {"dog": 0.666667, "cat": 0.0, "frog": 1.0}}


def test_no_accuracies_of_too_many_classes_or_of_other_figures(tmp_path: Path) -> None:
    for classes, number in ((100, 100), (101, 0)):
        result = evaluated([*range(classes)], [*range(classes)], classes)
        fields = results(tmp_path, [str(index) for index in range(classes)]).by_class(result)
        assert len(fields.get("class_accuracy", {})) == number
    assert results(tmp_path, ["a", "b"]).by_class({"accuracy": 0.5}) == {}
    assert results(tmp_path, ["a"]).by_class(evaluated([0, 1], [0, 0], 2)) == {}, "the classes are others"


def finish(made: Results, result: Any, leads: bool = True) -> dict[str, Any]:
    attempt = cast(Any, made)._attempt
    attempt.leads = leads
    return made.finished(9, result, "test", torch.nn.Linear(2, 2), {"model": "x"})


def test_the_last_row_names_pictures_that_are_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = results(tmp_path, ["dog", "c$at"])
    fields = finish(made, evaluated([0, 0, 1, 1], [0, 1, 1, 1], 2))
    assert set(fields) == {"class_accuracy", "media"}
    assert set(fields["media"]) == {"predictions", "confusion_matrix"}
    assert len(fields["media"]["predictions"]) == 4
    for pictures in fields["media"].values():
        for picture in pictures:
            with Image.open(tmp_path / picture["path"]) as image:
                image.load()
    assert min(image.size) > 300, "the last one is the confusion matrix"
    assert [path.name for path in (tmp_path / "predictions").glob("confusion.*")] == ["confusion.png"]
    assert (tmp_path / "final" / "model.safetensors").exists()
    assert cast(Any, made)._attempt.said == []


def test_no_confusion_matrix_without_a_tracker_matplotlib_or_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluated([0, 0, 1, 1], [0, 1, 1, 1], 2)
    assert set(finish(results(tmp_path, "ab", tracker="none"), result)["media"]) == {"predictions"}
    assert set(finish(results(tmp_path, "ab", seconds_left=20.0), result)["media"]) == {"predictions"}
    monkeypatch.setattr("pitstop.session.results.find_spec", lambda name: None)
    assert set(finish(results(tmp_path, "ab"), result)["media"]) == {"predictions"}
    assert not (tmp_path / "predictions" / "confusion.png").exists()


def test_pictures_that_cannot_be_made_cost_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluated([0, 0, 1, 1], [0, 1, 1, 1], 2)
    made = results(tmp_path, "ab")
    monkeypatch.setattr("pitstop.session.results.beside", lambda *_: "it did not work")
    monkeypatch.setattr("pitstop.session.results.find_spec", lambda name: name)
    assert set(finish(made, result)["media"]) == {"predictions"}
    assert cast(Any, made)._attempt.said == ["no picture of the confusion matrix was made (it did not work)"]
    made = results(tmp_path, "ab")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pitstop.session.results.write_predictions", full)
    assert set(finish(made, result)) == {"class_accuracy"}
    assert cast(Any, made)._attempt.said == ["predictions/ was not written: No space left on device"]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    assert set(finish(results(tmp_path, "ab"), evaluated([0, 1], [0, 1], 2), leads=False)) == {"class_accuracy"}
    assert not list(tmp_path.iterdir())
