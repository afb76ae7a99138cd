"""What a tracker is told about a run, and that it is no more than that."""

import json
import subprocess
from pathlib import Path

import pytest

from pitstop.config import RecipeConfig
from pitstop.curves.about import About, Target, code_version, outcome, target_of
from pitstop.curves.other_run import _arguments, _flat, require
from pitstop.errors import UserError


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, "-C", folder, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_code_version(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "r.py"
    recipe.parent.mkdir()
    recipe.write_text("one")
    assert code_version(recipe) == {}, "no repository"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "runs.txt").write_text("not ours to judge")
    assert code_version(recipe) == {"commit": commit, "uncommitted_changes": False}
    recipe.write_text("two")
    assert code_version(recipe) == {"commit": commit, "uncommitted_changes": True}
    assert code_version(tmp_path / "nowhere" / "r.py") == {}


def test_flags_become_a_target_and_survive_events(tmp_path: Path) -> None:
    config = RecipeConfig(wandb_tags=" a, b ,", wandb_project="p", wandb_entity="e", wandb_group="g")
    target = Target.of(config)
    assert target == Target("wandb", "p", "e", "g", ("a", "b"), False)
    assert target_of(tmp_path) == Target()
    other = {"event": "tracker", **Target("tensorboard", "q").event()}
    lines = [{"event": "tracker", "attempt": 1, **target.event()}, {"event": "heartbeat"}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert target_of(tmp_path) == target
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write(json.dumps(other) + "\n")
    assert target_of(tmp_path) == Target("wandb", "q")


def test_no_flag_that_says_where_anything_is_goes_out(tmp_path: Path) -> None:
    kept = {
        "wandb_id": "1234",
        "definition": {"seed": 1},
        "config": {"store": "s3://CANARY", "data": "/CANARY"},
        "program": "/home/CANARY/r.py",
        "folder": "/home/CANARY",
    }
    (tmp_path / "config.json").write_text(json.dumps(kept))
    lines = [
        {"event": "start", "shape": {"device": "old"}},
        {"event": "code", "commit": "c0ffee", "uncommitted_changes": False},
        {"event": "start", "shape": {"device": "H100"}},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = About.of(tmp_path)
    config = {"seed": 1, "shape": {"device": "H100"}, "uncommitted_changes": False}
    assert about == About(tmp_path.name, "1234", "r.py", config, "c0ffee")
    (tmp_path / "status.json").write_text(
        json.dumps({"state": "finished", "host": "CANARY", "cost": 2.5, "result": {"accuracy": 0.5}})
    )
    assert outcome(tmp_path) == {"run/state": "finished", "run/cost": 2.5, "result/accuracy": 0.5}
    (tmp_path / "status.json").write_text("[")
    assert outcome(tmp_path) == {}


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitstop.curves.other_run.find_spec", lambda name: None)
    require("wandb")
    require("none")
    with pytest.raises(UserError, match=r"--tracker swanlab needs the package swanlab: pip install swanlab"):
        require("swanlab")
    monkeypatch.setattr("pitstop.curves.other_run.find_spec", lambda name: name == "tensorboardX" or None)
    require("tensorboard")


def test_what_other_trackers_continue_by(tmp_path: Path) -> None:
    about = About("r-1", "1a2b3c4d", "r.py", {}, "")

    def given(tracker: str, kept: str | None = None) -> dict[str, object]:
        return _arguments(tmp_path, Target(tracker, "p"), about, kept)

    assert given("tensorboard") == {"run_name": "tensorboard", "logging_dir": str(tmp_path)}
    assert given("mlflow", "77") == {"experiment_name": "p", "run_id": "77", "run_name": "r-1"}
    assert given("trackio") == {"run_name": "p", "name": "r-1", "resume": "allow"}
    swanlab = given("swanlab")
    assert swanlab["resume"] == "allow"
    assert len(str(swanlab["id"])) == 21
    assert swanlab == given("swanlab")
    assert _flat({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": "[2]", "d": "None"}
