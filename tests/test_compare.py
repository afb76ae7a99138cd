"""`pitstop compare`: seeds are one row, the figures are right, and each format can be read by its own readers."""

import csv
import io
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import write_run

from pitstop import compare, models
from pitstop.checkpoint import write_final
from pitstop.errors import UserError
from pitstop.report.read import read


def finished(path: Path, accuracy: float, **config: Any) -> Path:
    return write_run(path, status={"result": {"accuracy": accuracy, "loss": 1.0}}, **config)


def with_model(run: Path) -> Path:
    look = {"classes": ("a", "b"), "image_size": 32, "stem": "small"}
    model = models.create("test_resnet", channels=3, seed=0, **look)
    write_final(run / "final", model.state_dict(), models.card("test_resnet", mean=[0.5] * 3, std=[0.2] * 3, **look))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        finished(tmp_path / f"small-{seed}", accuracy, seed=seed, lr_note="no")
    finished(tmp_path / "large", 0.95, model="resnet34", lr_note="a|b")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["small-0", "large", "small-1", "small-2", *more, "--runs_dir", str(folder)]


def test_seeds_are_one_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.command(words(runs, "--format", "csv")) == 0
    small, large = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(small["accuracy_mean"]) == pytest.approx(0.93)
    assert float(small["accuracy_deviation"]) == pytest.approx(statistics.stdev([0.90, 0.92, 0.97]))
    assert (small["runs"], large["runs"], large["accuracy_deviation"]) == ("3", "1", "")
    assert float(small["images_per_second"]) == 135, "the median of 110 .. 160"
    assert float(small["paid_seconds"]) == 80
    assert float(small["cost"]) == pytest.approx(0.08)
    assert (small["model"], large["model"]) == ("resnet18 lr_note=no", "resnet34 lr_note=a|b")


def test_markdown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.command(words(runs))
    text = capsys.readouterr().out
    lines = text.split("\n\n")[0].splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1, "every row has as many cells"
    assert "| 93.00 ± 3.61 % |" in lines[2]
    assert r"lr\_note=a\|b" in lines[3]
    assert "1:20 | 0.08 CNY |" in lines[2]
    assert "no final/ or best/ yet" in text


def test_latex(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(runs / "odd", 0.5, lr_note="no", model=r"50%_\x^2~{$}&#<>")
    compare.command(["small-0", "odd", "--format=latex", "--runs_dir", str(runs)])
    text = capsys.readouterr().out
    escaped = r"50\%\_\textbackslash{}x\textasciicircum{}2\textasciitilde{}\{\$\}\&\#\textless{}\textgreater{}"
    assert escaped in text
    assert text.startswith(r"\begin{tabular}{lrrrrrrrr}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in rows] == [8, 8, 8]
    compare.command(words(runs, "--format", "latex"))
    assert r"93.00 $\pm$ 3.61 \%" in capsys.readouterr().out


def test_latex_rows_that_begin_with_what_ends_a_row_could_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`\\\\` looks for a star and a bracket behind it, across the end of the line."""
    for name in ("[a]", "*b"):
        write_run(tmp_path / name, data_set={"sha256": name})
    compare.command([str(tmp_path / "[a]"), str(tmp_path / "*b"), "--format", "latex"])
    rows = capsys.readouterr().out.splitlines()[4:6]
    assert [row.partition(" & ")[0] for row in rows] == ["{[}a]", "{*}b"]


def test_costs_of_two_currencies_have_no_mean(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, seed=seed, status={"currency": name}) for seed, name in enumerate(("CNY", "USD"))
    ]
    assert compare.compare([read(run) for run in runs])[0].cost is None
    assert compare.compare([read(runs[0])])[0].cost == pytest.approx(0.08)


def test_the_model_is_measured(runs: Path) -> None:
    with_model(runs / "small-1")
    row, other = compare.compare([read(runs / "small-0"), read(runs / "small-1"), read(runs / "large")], latency=True)
    model, _ = models.load(runs / "small-1" / "final")
    assert row.parameters == sum(parameter.numel() for parameter in model.parameters())
    flops = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal flops
        per_place = module.weight[0].numel()
        flops += 2 * per_place * output.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert row.flops == flops
    assert row.latency_seconds is not None
    assert 1e-5 < row.latency_seconds < 1
    assert other.parameters is None
    assert other.complaint


def test_a_damaged_model_is_named(runs: Path) -> None:
    (with_model(runs / "large") / "final" / "model.safetensors").write_bytes(b"torn")
    (row,) = compare.compare([read(runs / "large")])
    assert row.parameters is None
    assert "model.safetensors is missing or damaged" in row.complaint


def test_runs_that_are_not_done(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "going", status={"state": "running", "result": None, "price": 0}, seed=9, lr_note="no")
    compare.command(["small-0", "small-0", "going", "--runs_dir", str(runs)])
    row = capsys.readouterr().out.splitlines()[2]
    assert "| 2 (1 unfinished) | 90.00 % |" in row, "80 % is that of an evaluation on the way"
    assert row.endswith("| - |"), "one of them has no price"
    compare.command(["going", "--runs_dir", str(runs), "--format", "latex"])
    captured = capsys.readouterr()
    assert r"80.00 \%" in captured.out
    assert "no final/ or best/ yet" in captured.err


def test_configs_that_differ_in_what_has_no_name(tmp_path: Path) -> None:
    rows = compare.compare(
        [read(write_run(tmp_path / name, data_set={"sha256": name})) for name in ("first", "second")]
    )
    assert [row.name for row in rows] == ["first", "second"]


def test_accuracies_on_two_splits_have_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (split, accuracy) in enumerate((("val", 0.8), ("test", 0.6), ("test", 0.7))):
        write_run(tmp_path / str(seed), seed=seed, status={"split": split, "result": {"accuracy": accuracy}})
    write_run(tmp_path / "going", seed=9, status={"state": "running", "split": "", "result": None})
    names = ["1", "2", "0", "going", "--runs_dir", str(tmp_path)]
    compare.command([*names, "--format", "csv"])
    on_test, on_val = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (on_test["split"], on_test["runs"], on_test["unfinished"]) == ("test", "3", "1")
    assert float(on_test["accuracy_mean"]) == pytest.approx(0.65)
    assert (on_val["split"], on_val["runs"], float(on_val["accuracy_mean"])) == ("val", "1", 0.8)
    assert (on_test["model"], on_val["model"]) == ("resnet18 split=test", "resnet18 split=val")
    compare.command(names)
    assert "On val, which has chosen the weights, not on a test set: resnet18 split=val." in capsys.readouterr().out


def test_names_have_what_all_configs_have_and_what_tells(tmp_path: Path) -> None:
    first, second = {"stem": "small", "log_every": 10, "lr": 0.1}, {"log_every": 50, "lr": 0.2}
    runs = [read(write_run(tmp_path / name, **more)) for name, more in (("first", first), ("second", second))]
    assert [row.name for row in compare.compare(runs)] == ["resnet18 lr=0.1", "resnet18 lr=0.2"]
    first.pop("lr")
    runs = [read(write_run(tmp_path / name, **more)) for name, more in (("a/run", first), ("b/run", second))]
    assert [row.name for row in compare.compare(runs)] == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]


def test_the_figure(runs: Path) -> None:
    compare.command(words(runs, "--figure", str(runs / "figures")))
    assert sorted(path.name for path in (runs / "figures").iterdir()) == [
        "accuracy.pdf",
        "accuracy.png",
        "accuracy.svg",
    ]


def test_labels_of_the_figure_that_are_equal_when_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("pitstop.report.style.Press.files", lambda press, name, draw: seen.append(press.whole.classes))
    for name, lr in (("first", 1), ("second", 2)):
        write_run(tmp_path / name, data="x" * 50, lr=lr, note=f"{'y' * 50}{lr}")
    compare._draw(compare.compare([read(tmp_path / name) for name in ("first", "second")]), tmp_path)
    for name in ("first", "second"):
        write_run(tmp_path / f"{name} long", note=f"{'y' * 50}{name}")
    compare._draw(compare.compare([read(tmp_path / f"{name} long") for name in ("first", "second")]), tmp_path)
    assert seen == [("resnet18 lr=1 note=" + "y" * 50 + "1", "resnet18 lr=2 note=" + "y" * 50 + "2"),
                    ("first long", "second long")]  # fmt: skip


def test_wrong_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is no run"):
        compare.command(["small-0", "nothing", "--runs_dir", str(runs)])
    for argv in ([], ["small-0", "--format", "word"], ["--latency", "small-0", "large"]):
        with pytest.raises(SystemExit, match="2"):
            compare.command(argv)
    assert "one of markdown, csv, latex" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "report"])
def test_help_and_wrong_flags_import_no_torch(command: str) -> None:
    code = (
        f"import sys, pitstop.{command} as module\n"
        "for flag in ('--help', '--nothing'):\n"
        "    try:\n        module.command([flag])\n    except SystemExit: pass\n"
        "print(*sorted({'torch', 'numpy', 'matplotlib', 'PIL'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""
    assert "usage: pitstop" in done.stdout
