"""The command line of a recipe: right flags arrive typed, wrong ones end the program before anything was started."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from pitstop import flags
from pitstop.config import RecipeConfig, operational, recipe_file
from pitstop.errors import UsageError, UserError

RECIPE = '''"""The docstring of the module."""
import atexit
import sys

from pydantic import Field

from pitstop.config import RecipeConfig
from pitstop.flags import parse

HEAVY = {"torch", "timm", "accelerate", "wandb", "numpy"}
atexit.register(lambda: print("heavy:", *sorted(HEAVY & set(sys.modules))))


class Config(RecipeConfig):
    """Digits in a minute, on a CPU."""

    epochs: float = 26
    cutout: int = Field(8, ge=0)
    """side of the blanked square, in pixels"""
    nesterov: bool = True
    """look ahead"""


def main(config):
    open("trained", "w").write(config.model_dump_json())


if __name__ == "__main__":
    main(parse(Config))
'''


class Config(RecipeConfig):
    """For the tests that need no process."""

    epochs: float = 26
    precision: Literal["fp16", "fp32"] = "fp16"
    """narrower than the shared one"""
    batch_size: int = Field(7, ge=5)
    cutout: int = Field(8, ge=0)
    """side of the blanked square, in pixels"""
    shift: int = operational(3, lt=5)
    nesterov: bool = True


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PITSTOP_", "RANK", "LOCAL_"))
    }
    return subprocess.run(
        [sys.executable, recipe.name, *given],
        cwd=recipe.parent,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def problems(*given: str, config_type: type[RecipeConfig] = Config) -> list[str]:
    with pytest.raises(UsageError) as caught:
        flags.bind(config_type, given)
    return str(caught.value).splitlines()


def test_right_flags_reach_main_and_nothing_heavy_was_imported(recipe: Path) -> None:
    done = run(recipe, "--name", "0123e4", "--epochs=5", "--batch-size", "40", "--no-nesterov")
    assert done.returncode == 0, done.stderr
    config = (recipe.parent / "trained").read_text()
    assert '"name":"0123e4"' in config
    assert '"epochs":5.0' in config
    assert '"batch_size":40' in config
    assert '"nesterov":false' in config
    assert done.stdout == "heavy:\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--epohcs", "5"], "--epohcs: no such flag; did you mean --epochs?"),
        (["--epochs", "ten"], "--epochs ten: a number greater than 0 was expected (default: 26)"),
        (["--batch_size", "-1"], "--batch_size -1: a whole number of at least 2 was expected (default: 500)"),
        (["train"], "train: this word belongs to no flag"),
    ],
)
def test_a_wrong_flag_ends_with_2_and_leaves_nothing(recipe: Path, given: list[str], said: str) -> None:
    before = sorted(recipe.parent.rglob("*"))
    done = run(recipe, *given)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(recipe.parent.rglob("*")) == before == [recipe]
    assert done.stdout == "heavy:\n"


def test_a_wrong_flag_is_answered_within_a_second(recipe: Path) -> None:
    """Of a processor: that others use it as well is not the program's fault."""

    def measured() -> float:
        before = os.times()
        assert run(recipe, "--epohcs", "5").returncode == 2
        return sum(os.times()[2:4]) - sum(before[2:4])  # of children: user, system

    assert min(measured() for _ in range(3)) < 1


def test_of_two_ranks_both_leave_and_one_speaks(recipe: Path) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        first, second = (run(recipe, "--epohcs", "5", **{name: rank}) for rank in "01")
        assert (first.returncode, second.returncode) == (2, 2)
        assert first.stderr.count("did you mean --epochs?") == 1
        assert second.stderr == ""
    assert run(recipe, "--help", RANK="1").stdout == "heavy:\n"


def test_the_second_machine_is_silent_too(recipe: Path) -> None:
    assert run(recipe, "--epohcs", "5", RANK="2", LOCAL_RANK="0").stderr == ""


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(recipe: Path, flag: str) -> None:
    done = run(recipe, "--epochs", "ten", flag)
    assert done.returncode == 0
    assert not (recipe.parent / "trained").exists()
    assert done.stdout.startswith("usage: accelerate launch small.py ")
    assert "Digits in a minute" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    own, shared, operational_ = re.split(r"\n\n\S.*:\n", done.stdout)[1:]
    assert re.findall(r"^  --(\w+)", own, re.M) == ["cutout", "nesterov"]
    assert re.findall(r"^  --(\w+)", shared, re.M) == RecipeConfig.defining_fields()
    assert {"name", "runs_dir", "keep", "device"} < set(re.findall(r"^  --(\w+)", operational_, re.M))
    text = " ".join(done.stdout.split())
    assert "--cutout side of the blanked square, in pixels [a whole number of at least 0; default 8]" in text
    assert "--epochs passes over the training images; may be a fraction [a number greater than 0; default 26]" in text
    assert "[one of auto, fp16, bf16, fp32; default auto]" in text
    assert "[switch, off: --no-nesterov; default true]" in text
    assert "environment PITSTOP_RUNS_DIR" in text


def test_help_takes_the_docstring_of_the_module_where_the_config_has_none(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('    """Digits in a minute, on a CPU."""\n', ""))
    assert "The docstring of the module." in run(recipe, "--help").stdout


def test_every_flag_says_what_it_is() -> None:
    assert [name for name, field in RecipeConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--deterministic"], True),
        (["--deterministic", "--epochs", "5"], True),
        (["--deterministic=false"], False),
        (["--deterministic", "false"], False),
        (["--deterministic", "True"], True),
        (["--nodeterministic"], False),
        (["--no-deterministic"], False),
        (["--no_deterministic"], False),
    ],
)
def test_switches(given: list[str], expected: bool) -> None:
    class Opposite(RecipeConfig):
        deterministic: bool = not expected

    assert flags.bind(Opposite, given).deterministic is expected


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (["--name", "0123e4"], "name", "0123e4"),
        (["--name", "True"], "name", "True"),
        (["--data", "a=b,[c]"], "data", "a=b,[c]"),
        (["--data", "-5"], "data", "-5"),
        (["--data=--epochs"], "data", "--epochs"),
        (["--data="], "data", ""),
        (["--epochs", "1e-3"], "epochs", 0.001),
        (["--save-every", "200steps"], "save_every", "200steps"),
        (["--save_every=2h"], "save_every", "2h"),
        (["--runs_dir", "runs/mine"], "runs_dir", Path("runs/mine")),
        (["--runs_dir=~/mine"], "runs_dir", Path.home() / "mine"),
        ([], "epochs", 26.0),
    ],
)
def test_values_are_parsed_by_the_type_of_the_field(given: list[str], field: str, value: object) -> None:
    assert getattr(flags.bind(Config, given), field) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--lr 1", "did you mean --peak_lr?"),
        ("--learning_rate=1", "did you mean --peak_lr?"),
        ("--learning-rat 1", "did you mean --peak_lr?"),
        ("--data_dir x", "did you mean --data?"),
        ("--dataset x", "did you mean --data?"),
        ("--num_workers 4", "the images live on the device"),
        ("--gradient_accumulation_steps 4", "--micro_batch"),
        ("--fp16", "did you mean --precision fp16?"),
        ("--resume", "the same command continues"),
        ("--output_dir x", "--runs_dir"),
        ("--bs 4", "did you mean --batch_size?"),
        ("--wd 4", "did you mean --weight_decay?"),
        ("--n_epochs 4", "did you mean --epochs?"),
        ("--arch resnet18", "did you mean --model?"),
        ("--wandb", "--tracker wandb"),
        ("--num_processes 2", "accelerate launch --num_processes 2"),
        ("--max_hours -1", "--max_hours -1: a number of at least 0 was expected (default: 0.0)"),
        ("--budget 5", "--budget 5: what does an hour cost? Give --price (or set PITSTOP_PRICE)"),
        ("--mtbf soon", "--mtbf soon: a duration such as 30s, 10m or 2h was expected (default: 2h)"),
        ("--cloud gce", "--cloud gce: one of auto, none, aws"),
        ("--Epochs 4", "did you mean --epochs?"),
        ("--no-nestrov", "did you mean --nesterov?"),
        ("--qqqqq 4", "--help lists"),
        ("--no-epochs", "--epochs cannot be switched off, it takes a value (a number greater than 0)"),
        ("--no-nesterov true", "--no-nesterov takes no value"),
        ("--nesterov maybe", "--nesterov maybe: true or false was expected (default: true)"),
        ("--epochs", "--epochs: a value is missing (passes over the training images"),
        ("--epochs --seed=1", "--epochs: a value is missing"),
        ("--epochs=", "--epochs '': a number greater than 0 was expected"),
        ("--epochs inf", "--epochs inf: a finite number greater than 0 was expected"),
        ("--epochs 3 --epochs=4", "--epochs is given twice: 3 and 4"),
        ("--batch_size 8 --batch-size 9", "--batch_size is given twice: 8 and 9"),
        ("--nesterov --no-nesterov", "--nesterov is given twice"),
        ("--batch_size 5.5", "--batch_size 5.5: a whole number of at least 5 was expected (default: 7)"),
        ("--batch_size 1e3", "--batch_size 1e3: a whole number"),
        ("--label_smoothing 1", "a number of at least 0 and less than 1 was expected (default: 0.0)"),
        ("--shift 5", "a whole number less than 5 was expected (default: 3)"),
        ("--precision bf16", "--precision bf16: one of fp16, fp32 was expected (default: fp16)"),
        (
            "--save_every soon",
            "--save_every soon: auto, or an interval such as 60s, 10m or 200steps, was expected (default: auto)",
        ),
        ("--save_every 0s", "--save_every 0s: auto, or an interval"),
        ("--micro_batch 1", "at least 2 was expected"),
        ("--runs_dir /dev/null/x", "a directory was expected, but /dev/null is a file"),
        ("--runs_dir=", "--runs_dir '': a directory was expected"),
        ("--name ../x", "--name ../x: a name of up to 100 bytes"),
        ("epochs=5", "epochs=5: did you mean --epochs=5?"),
        ("epochs", "epochs: did you mean --epochs?"),
        ("-epochs 5", "-epochs: a flag begins with two dashes; did you mean --epochs?"),
        ("\u2013epochs 5", "did you mean --epochs?"),
        ("-", "a lone '-' means nothing here"),
        ("--", "a lone '--' means nothing here"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given: str, said: str) -> None:
    lines = problems(*given.split())
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_all_problems_are_said_at_once() -> None:
    lines = problems("--epohcs", "5", "stray", "--seed", "--batch_size", "-1", "--epochs", "ten", "--no-keep")
    assert [line.split()[0] for line in lines] == [
        "--epohcs:", "stray:", "--seed:", "--no-keep:", "--epochs", "--batch_size",
    ]  # fmt: skip


def test_bytes_that_are_no_text_are_refused() -> None:
    assert len(problems("--name", "\udcff")) == 1
    assert len(problems("--data", "\udcff")) == 1


def test_long_values_are_cut() -> None:
    assert len(problems("--seed", "9" * 5000)[0]) < 250


def test_a_check_of_the_whole_config_speaks_for_itself(recipe: Path) -> None:
    check = """
    @model_validator(mode="after")
    def check(self):
        if self.cutout > self.batch_size:
            raise ValueError("--cutout must not exceed --batch_size")
        return self
"""
    text = RECIPE.replace("import Field\n", "import Field, model_validator\n", 1)
    recipe.write_text(text.replace("\n\ndef main", check + "\n\ndef main"))
    done = run(recipe, "--cutout", "600")
    assert done.returncode == 2
    assert done.stderr.startswith("--cutout must not exceed --batch_size\n")


def test_a_bad_default_in_the_environment_is_named(recipe: Path) -> None:
    done = run(recipe, PITSTOP_RUNS_DIR="/dev/null")
    assert done.returncode == 2
    assert "environment variable PITSTOP_RUNS_DIR=/dev/null: a directory was expected" in done.stderr
    assert not (recipe.parent / "trained").exists()
    assert run(recipe, "--runs_dir", "runs", PITSTOP_RUNS_DIR="/dev/null").returncode == 0


def test_the_environment_gives_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITSTOP_RUNS_DIR", "elsewhere")
    assert flags.bind(Config, []).runs_dir == Path("elsewhere")
    monkeypatch.setenv("PITSTOP_RUNS_DIR", "")
    assert flags.bind(Config, []).runs_dir == Path("runs")


def test_a_bad_default_in_the_recipe_is_named() -> None:
    class Careless(RecipeConfig):
        epochs: float = 0

    assert "the default of --epochs, 0, is wrong: a number greater than 0" in problems(config_type=Careless)[0]


def test_a_new_default_keeps_bounds_meaning_and_role() -> None:
    shared = RecipeConfig.model_fields["epochs"]
    assert Config.model_fields["epochs"].metadata == shared.metadata
    assert Config.model_fields["epochs"].description == shared.description
    assert Config.model_fields["precision"].description == "narrower than the shared one"
    assert not {"precision", "shift"} & set(Config.defining_fields())
    assert {"cutout", "epochs"} < set(Config.defining_fields())


def test_a_required_flag() -> None:
    class Folder(RecipeConfig):
        data: str
        """folder of images"""

    assert problems(config_type=Folder) == ["--data is missing (folder of images)"]
    one, other = (flags.bind(Folder, ["--data", name]).digest("finetune") for name in ("a", "b"))
    assert one != other


def test_other_peoples_names_lead_to_flags_that_exist() -> None:
    said = [*flags.SYNONYMS.values(), *flags.ADVICE.values()]
    named = set(re.findall(r"--(\w+)", " ".join(said))) - {"num_processes"}
    assert named <= set(RecipeConfig.model_fields)
    assert not {*flags.SYNONYMS, *flags.ADVICE} & set(RecipeConfig.model_fields)


def test_recipe_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_file(Config) == Path(__file__).resolve()
    monkeypatch.delattr(sys.modules[__name__], "__file__")
    with pytest.raises(UserError, match="not written in a file"):
        recipe_file(Config)
