"""A run's files as they may be: missing, torn, damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import write_predictions, write_run
from safetensors.numpy import load_file, save_file

from pitstop.errors import UserError
from pitstop.report.read import number, read, read_predictions


def test_what_is_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    logits_NK, labels_N = write_predictions(run, ["a", "b", "c"])
    found, predictions = read(run), read_predictions(run)
    assert predictions is not None
    assert len(found.train) == 6
    assert len(found.evals) == 2
    assert found.result == {"loss": 0.5, "accuracy": 0.8}
    assert (predictions.logits_NK == logits_NK).all()
    assert (predictions.labels_N == labels_N).all()
    assert predictions.images_MHWC.shape[1:] == (16, 16, 3)


def test_what_is_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status={"state": "running", "result": None})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "eval", "step": 7, "accu')  # a crash
    assert read(run).result == {"loss": 0.5, "accuracy": 0.8}, "of the last evaluation that was written whole"
    assert read_predictions(run) is None
    for name in ("metrics.jsonl", "events.jsonl", "status.json"):
        (run / name).unlink()
    assert read(run).result == {}
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read(run)


def test_numbers_that_are_text() -> None:
    assert number({"loss": "inf"}, "loss") == float("inf")
    assert number({"loss": "high"}, "loss") is None
    assert number({"loss": True}, "loss") is None


@pytest.mark.parametrize("damage", ["cut", "labels", "classes", "rows", "channels", "about"])
def test_damaged_predictions(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "run")
    write_predictions(run, ["a", "b", "c"])
    folder = run / "predictions"
    kept, pictures = (load_file(folder / f"{name}.safetensors") for name in ("predictions", "pictures"))
    about = json.loads((folder / "about.json").read_text())
    if damage == "cut":
        (folder / "predictions.safetensors").write_bytes((folder / "predictions.safetensors").read_bytes()[:500])
    elif damage == "labels":
        save_file(kept | {"labels_N": kept["labels_N"] + 1}, folder / "predictions.safetensors")
    elif damage == "classes":
        (folder / "about.json").write_text(json.dumps(about | {"classes": ["a", "b"]}))
    elif damage == "rows":
        save_file(pictures | {"rows_M": pictures["rows_M"] + 400}, folder / "pictures.safetensors")
    elif damage == "channels":
        images = np.ascontiguousarray(pictures["images_MCHW"][:, :2])
        save_file(pictures | {"images_MCHW": images}, folder / "pictures.safetensors")
    else:
        (folder / "about.json").write_text("[]")
    with pytest.raises(UserError, match="predictions is damaged"):
        read_predictions(run)
