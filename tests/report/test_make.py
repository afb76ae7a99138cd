"""The page and its figures, whatever the run has to show."""

import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import EVENTS, write_predictions, write_run
from PIL import Image
from sklearn import metrics

from pitstop import models, report
from pitstop.checkpoint import write_final
from pitstop.errors import UserError
from pitstop.report import figures, style
from pitstop.report.make import make
from pitstop.report.words import Words

NASTY = [
    "<script>alert('x')</script>",
    'a & b" onload="x',
    "$x_1$ \\frac",
    "{{ w }}",
    r"$\frac$",
    "a name that is much too long for it",
]
CHINESE = ["飞机", "汽车", "鸟"]
KINDS = style.KINDS
FIGURES = ("curves", "learning_rate", "minutes", "confusion", "reliability", "mistakes", "uncertain", "hits")


class Page(HTMLParser):
    """The page's tags with their attributes, and its text by the tag around it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.drawn: list[str] = []  # the text of figures
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.text.append(" ".join(data.split()))
            if self._open[-1] == "text":
                self.drawn.append(data)


@pytest.fixture(autouse=True)
def _svg_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDF and PNG of each figure take as long as all else: one test looks at them."""
    monkeypatch.setattr(style, "KINDS", {"svg": style.KINDS["svg"]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def model_of(run: Path, classes: list[str], channels: int = 3, size: int = 16) -> None:
    look = {"classes": classes, "image_size": size, "stem": "small"}
    model = models.create("test_resnet", channels=channels, seed=0, **look)
    card = models.card("test_resnet", mean=[0.5] * channels, std=[0.2] * channels, **look)
    write_final(run / "final", model.state_dict(), card)


def test_everything_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "KINDS", KINDS)
    logits_NK, labels_N = write_predictions(run, ["cat", "dog", "frog"])
    model_of(run, ["cat", "dog", "frog"])
    assert report.command([str(run)]) == 0
    page, folder = Page(run / "report" / "report.html"), run / "report" / "figures"
    accuracy = metrics.accuracy_score(labels_N, logits_NK.argmax(1))
    assert page.text.count(f"{100 * accuracy:.2f} %") >= 2
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert summary["predictions"]["accuracy"] == pytest.approx(accuracy)
    assert summary["predictions"]["classes"][1]["name"] == "dog"
    assert summary["bill"]["paid_seconds"] == 80
    assert sum(attempt["cost"] for attempt in summary["attempts"]) == pytest.approx(summary["bill"]["cost"])
    assert sorted({path.stem for path in folder.iterdir()}) == sorted([*FIGURES, "grad_cam"])
    for name in [*FIGURES, "grad_cam"]:
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(folder / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert (run / "report" / "report.html").stat().st_size < 3e6


def test_it_needs_nothing_else(run: Path) -> None:
    """No address anywhere but in names of XML; ids are unique; pictures have a text."""
    write_predictions(run, ["cat", "dog"])
    page = Page(make(run))
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert tag not in ("script", "iframe", "object", "embed")
        if tag == "img":
            assert attributes["alt"]
    source = (run / "report" / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", source)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'href="#([^"]+)"', source))
    assert wanted <= set(ids)
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(svgs) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in svgs)


def test_two_classes_have_a_roc_curve(run: Path) -> None:
    logits_NK, labels_N = write_predictions(run, ["healthy", "ill"], channels=1)
    page = Page(make(run))
    area = metrics.roc_auc_score(labels_N, logits_NK[:, 1] - logits_NK[:, 0])
    assert f"{area:.4f}" in page.text
    assert (run / "report" / "figures" / "roc.svg").exists()


def test_names_of_the_user_are_text(run: Path) -> None:
    write_predictions(run, NASTY)
    page = Page(make(run))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    for name in NASTY:
        assert " ".join(name.split()) in page.text
    assert r"$\frac$" in page.drawn, "as it is, not as a formula"


def test_without_predictions(run: Path) -> None:
    status = {"state": "stopped", "reason": "<b>asked</b>", "result": None, "step": 32}
    other = write_run(run.parent / "other", events=EVENTS[:4], status=status)
    page = Page(make(other))
    said = " ".join(page.text)
    assert "This run has no predictions/:" in said
    assert "stopped at step 32 of 60 (<b>asked</b>)" in said
    assert "80.00 %" in said, "of the last evaluation"
    assert not (other / "report" / "figures" / "confusion.svg").exists()
    assert json.loads((other / "report" / "summary.json").read_text())["predictions"] == {}


def test_an_evaluation_on_the_way_is_of_weights_that_are_in_no_folder(run: Path) -> None:
    write_predictions(run, ["a", "b"])
    about = json.loads((run / "predictions" / "about.json").read_text())
    (run / "predictions" / "about.json").write_text(json.dumps(about | {"weights": "last", "step": 30}))
    text = " ".join(Page(make(run)).text)
    assert "The figures are those of the model after 30 steps" in text
    assert "No Grad-CAM: the weights of this step are not kept" in text
    assert "last/" not in text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", events=[], rows=[], status={"state": "running", "result": None, "step": 0})
    said = " ".join(Page(make(run)).text)
    assert "There are no rows in metrics.jsonl yet." in said
    (run / "status.json").unlink()
    make(run)


def test_rows_with_nan(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 70, "epoch": 2.3, "loss": "nan", "lr": 0.0}\n')
        file.write('{"kind": "eval", "step": 70, "epoch": 2.3, "loss": "inf", "accuracy": 0.1}\n')
    make(run)


def test_damaged_predictions_are_named_and_nothing_else_is_lost(run: Path) -> None:
    write_predictions(run, ["a", "b"])
    (run / "predictions" / "pictures.safetensors").write_bytes(b"torn")
    said = " ".join(Page(make(run)).text)
    assert "predictions is damaged" in said
    assert "How it learned" in said


def test_not_exact_is_said(run: Path) -> None:
    change = {"event": "shape_changed", "attempt": 3, "changes": ["device: NVIDIA A100 -> NVIDIA A10G"]}
    run = write_run(run.parent / "changed", events=[*EVENTS, change])
    assert "Exact: no, since attempt 3 (NVIDIA A10G, was NVIDIA A100)." in Page(make(run)).text


def test_a_damaged_status_is_named_and_the_events_tell(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", currency="CNY")
    (run / "status.json").write_text("{torn")
    said = " ".join(Page(make(run)).text)
    assert "status.json is damaged or missing" in said
    assert "60 of 60 steps" in said
    assert "The run is finished." in said
    assert "3.6 CNY/h" in said
    assert json.loads((run / "report" / "summary.json").read_text())["bill"]["cost"] == pytest.approx(0.08)
    other = write_run(run.parent / "other", events=EVENTS[:4], currency="EUR")
    (other / "status.json").unlink()
    said = " ".join(Page(make(other)).text)
    assert "The run is not finished: at step 32 of 60, last sign of life 2026-01-01 00:00:30." in said
    assert "3.6 EUR/h" in said


def test_damaged_lines_are_counted_and_named(run: Path) -> None:
    for name in ("events.jsonl", "metrics.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"torn\n[1]\n{"being written')
    said = " ".join(Page(make(run)).text)
    assert "events.jsonl is damaged or missing, and what it alone knows is not here: 2 of 14 lines cannot be" in said
    assert "metrics.jsonl is damaged or missing, and what it alone knows is not here: 2 of 11 lines cannot be" in said
    assert "Exact: not known" in said
    assert json.loads((run / "report" / "summary.json").read_text())["exact"] is None


def test_nothing_is_broken(run: Path) -> None:
    assert "is damaged or missing" not in " ".join(Page(make(run)).text)


def test_how_many_classes_the_config_knows(run: Path) -> None:
    other = write_run(run.parent / "other", data_set={"classes": ["a", "b", "c"]})
    assert "learned to tell 3 classes apart" in " ".join(Page(make(other)).text)


def test_in_chinese(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no font can draw it, the files number the classes, and the page leaves them to the browser."""
    monkeypatch.setattr(style, "cjk_font", lambda: None)
    write_predictions(run, CHINESE)
    page = Page(make(run, "zh"))
    assert ("html", {"lang": "zh-CN"}) in page.tags
    assert any("本机没有可用的中文字体" in text for text in page.text)
    assert page.text.count("飞机") >= 3, "in tables, and as text in the confusion matrix"
    assert "真实类别" in page.text
    left = [text for text in page.text if re.search(r"\b(the|class|accuracy|step|attempt)\b", text)]
    assert not [text for text in left if "accelerate" not in text], "an English word was left"


def test_chinese_classes_with_and_without_a_font(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = style.cjk_font()
    monkeypatch.setattr(style, "cjk_font", lambda: None)
    without = style.Press(tmp_path, Words("en"), tuple(CHINESE))
    assert without.lacks_font
    assert without.safe.classes == ("0", "1", "2")
    assert without.whole.classes == tuple(CHINESE)
    assert not style.Press(tmp_path, Words("en"), ("cat",)).lacks_font
    if found is None:
        pytest.skip("this machine has no font for Chinese")
    monkeypatch.setattr(style, "cjk_font", lambda: found)
    drawn = style.Press(tmp_path, Words("zh"), tuple(CHINESE))
    assert not drawn.lacks_font
    drawn.files("confusion", partial(figures.confusion, np.eye(3, dtype=np.int64)))  # a missing glyph would be an error


def test_the_same_files_give_the_same_page(run: Path) -> None:
    write_predictions(run, ["cat", "dog"])
    first = {path.name: path.read_bytes() for path in (make(run).parent).rglob("*") if path.suffix in (".html", ".svg")}
    again = {path.name: path.read_bytes() for path in (make(run).parent).rglob("*") if path.suffix in (".html", ".svg")}
    assert first == again


def test_many_attempts_are_one_bar(run: Path) -> None:
    lines = [event | {"attempt": 3 * turn + int(event["attempt"])} for turn in range(30) for event in EVENTS]
    page = make(write_run(run.parent / "stormy", events=lines))
    assert "all 90 attempts together" in page.read_text()


def test_the_run_must_be_there(run: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        report.command(["nothing", "--runs_dir", str(run.parent)])
    (run / "config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        make(run)


def test_large_pictures_are_made_small(run: Path) -> None:
    write_predictions(run, ["a", "b"], size=300)
    page = make(run)
    assert page.stat().st_size < 3e6
    uris = [attributes["src"] or "" for tag, attributes in Page(page).tags if tag == "img"]
    assert len(uris) == 72
    assert all(uri.startswith("data:image/jpeg") for uri in uris)
    assert np.mean([len(uri) for uri in uris]) < 30e3
