"""The command that continues a run: words that the shell and the recipe understand as they were meant."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pitstop import again, config

RECIPE = """
class Config(RecipeConfig):
    epochs: float = 8
    data: Literal["digits"] = "digits"
    image_size: int = Field(32, ge=8)
    flip: bool = True
    other: str = compute()
"""


@pytest.fixture
def about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("PITSTOP_RUNS_DIR", raising=False)
    program = tmp_path / "recipes" / "my digits.py"
    program.parent.mkdir()
    program.write_text(RECIPE)
    values = json.loads(config.RecipeConfig().model_dump_json())
    values |= {"epochs": 8.0, "data": "digits", "image_size": 32, "flip": True, "other": "x"}
    return {"program": str(program), "folder": str(tmp_path), "config": values}


def words(about: dict[str, Any], processes: int = 1) -> list[str]:
    return shlex.split(again.command(about, processes))


def test_only_what_differs(about: dict[str, Any]) -> None:
    begin = ["accelerate", "launch", "recipes/my digits.py"]
    assert words(about) == [*begin, "--other", "x"], "a default that is computed is not known"
    about["config"] |= {"epochs": 3.0, "image_size": 64, "flip": False, "weight_decay": 1e-05, "name": "it's"}
    about["config"] |= {"dry_run": True, "accept_change": True}
    changed = words(about)[len(begin) :]
    given = dict(zip(changed[::2], changed[1::2], strict=True))
    assert given == {
        "--epochs": "3",
        "--image_size": "64",
        "--flip": "false",
        "--weight_decay": "1e-05",
        "--name": "it's",
        "--other": "x",
    }


def test_where_runs_lie(about: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about["config"]["runs_dir"] = str(tmp_path / "runs")
    assert "--runs_dir" not in words(about), "the default, in the folder in which it was begun"
    monkeypatch.setenv("PITSTOP_RUNS_DIR", "/elsewhere")
    assert str(tmp_path / "runs") in words(about)


def test_defaults_of_this_environment(about: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    about["config"] |= {"report": True, "price": 3.0}
    monkeypatch.setenv("PITSTOP_REPORT", "yes")
    monkeypatch.setenv("PITSTOP_PRICE", "3")
    assert not {"--report", "--price"} & set(words(about))
    monkeypatch.setenv("PITSTOP_REPORT", "off")
    monkeypatch.delenv("PITSTOP_PRICE")
    assert {"--report", "--price"} <= set(words(about))
    monkeypatch.setenv("PITSTOP_PRICE", "much")
    assert {"--report", "--price", "--mtbf"} <= set(words(about)), "then none is known"


def test_several_processes_and_a_program_elsewhere(about: dict[str, Any]) -> None:
    about["folder"] = "/other"
    assert words(about, 4)[:5] == ["accelerate", "launch", "--num_processes", "4", about["program"]]


def test_without_the_recipe_every_defining_flag_is_given(about: dict[str, Any]) -> None:
    Path(about["program"]).unlink()
    given = words(about)
    for name in ("epochs", "batch_size", "seed", "image_size"):
        assert f"--{name}" in given
    assert "--mtbf" not in given, "its default is pitstop's"
    assert again.command({}) == "accelerate launch ''"
