"""What the figures show, asked of matplotlib's own objects."""

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_runs import EVENTS, write_run

from pitstop.report import account, figures
from pitstop.report.account import PARTS
from pitstop.report.read import read
from pitstop.report.scores import calibration
from pitstop.report.style import Text
from pitstop.report.words import Words

TEXT = Text(Words("en"), ("a", "b", "c"))


def test_curves_and_their_stops(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run"))
    stopped = figures.stops(run, account.attempts(run))
    assert stopped == pytest.approx([16 / 30]), "attempt 3 continued at step 16 of 30 an epoch; attempt 2 never did"
    loss, accuracy = figures.curves(run, stopped, TEXT).axes
    assert loss.lines[0].get_xydata() == pytest.approx(np.array([(row["epoch"], row["loss"]) for row in run.train]))
    assert accuracy.lines[0].get_xydata() == pytest.approx(np.array([(1.0, 0.6), (2.0, 0.8)]))
    for axes in (loss, accuracy):
        assert axes.lines[-1].get_xdata() == pytest.approx([16 / 30, 16 / 30])
    assert figures.learning_rate(run, [], TEXT).axes[0].lines[0].get_ydata()[0] == pytest.approx(0.175)


def test_stops_at_the_beginning_and_behind_the_last_row(tmp_path: Path) -> None:
    """Attempt 3 began anew at step 0, attempt 4 at 90, where the rows end at 60."""
    anew = [event | ({"step": 0} if event["event"] == "start" else {}) for event in EVENTS]
    later = {"event": "start", "attempt": 4, "up": 5.0, "step": 90, "shape": {}}
    run = read(write_run(tmp_path / "run", events=[*anew, later]))
    stopped = figures.stops(run, account.attempts(run))
    assert stopped == pytest.approx([0.0, 3.0])
    for axes in (*figures.curves(run, stopped, TEXT).axes, *figures.learning_rate(run, stopped, TEXT).axes):
        low, high = axes.get_xlim()
        assert (low, high) == (0, pytest.approx(3, abs=0.3))
        assert high >= 3


def test_counts_are_written_up_to_twenty_classes() -> None:
    matrix = np.array([[5, 1, 0], [0, 7, 0], [2, 0, 3]])
    (axes,) = figures.confusion(matrix, TEXT).axes
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "5"), ((1, 0), "1"), ((1, 1), "7"), ((0, 2), "2"), ((2, 2), "3")
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    large = figures.confusion(np.eye(100, dtype=np.int64), Text(Words("en"), ("x",) * 100)).axes[0]
    assert list(large.texts) == []
    assert len(large.get_yticklabels()) < 20


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", ["a", "Normal controls", "正常的对照组图"])
def test_names_below_the_matrix_do_not_cover_each_other(classes: int, name: str) -> None:
    figure = figures.confusion(np.eye(classes, dtype=np.int64), Text(Words("en"), (name,) * classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a font that lacks the letters: as wide as others
        figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    level = [label.get_window_extent() for label in labels if label.get_rotation() == 0]
    assert len(level) in (0, classes)
    assert all(one.x1 < other.x0 for one, other in pairwise(level))


def test_the_bars_are_the_paid_time(tmp_path: Path) -> None:
    attempts = account.attempts(read(write_run(tmp_path / "run")))
    (axes,) = figures.minutes(attempts, TEXT).axes
    assert axes.get_xlabel() == "seconds"
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    assert widths.sum(0) == pytest.approx([30, 5, 45])
    assert len(widths) == len(PARTS)
    (axes,) = figures.minutes(attempts * 200, TEXT).axes
    assert axes.get_xlabel() == "hours"
    assert sum(bars[0].get_width() for bars in axes.containers) == pytest.approx(200 * 80 / 3600)


def test_reliability() -> None:
    found = calibration(np.array([0.95, 0.94, 0.55, 0.6]), np.array([True, False, True, True]))
    upper, lower = figures.reliability(found, TEXT).axes
    assert upper.lines[1].get_xydata() == pytest.approx(np.array([(0.575, 1.0), (0.945, 0.5)]))
    assert [bar.get_height() for bar in lower.patches] == pytest.approx([0.5, 0.5])
    even = calibration(np.linspace(0, 1, 1000), np.ones(1000, bool))
    upper, lower = figures.reliability(even, TEXT).axes
    assert (upper.get_ylim(), lower.get_ylim()[1]) == ((0, 1.02), pytest.approx(1 / 15, rel=0.1)), "bars fill it"


def test_seeds_and_their_spread() -> None:
    (axes,) = figures.accuracies([[0.9, 0.92, 0.97], [], [0.5]], [False, False, True], TEXT).axes
    spread, dots, mean = axes.lines[:3]
    assert spread.get_xdata() == pytest.approx([0.93 - 0.036056, 0.93 + 0.036056], abs=1e-6)
    assert list(dots.get_xdata()) == [0.9, 0.92, 0.97]
    assert list(mean.get_xdata()) == pytest.approx([0.93])
    assert (dots.get_markerfacecolor(), axes.lines[4].get_markerfacecolor()) == (dots.get_color(), "white")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c (unfinished)"]
    (axes,) = figures.accuracies([[1.0], [1.0, 1.0], []], [False] * 3, TEXT).axes
    assert axes.get_xlim()[1] == 1


def test_long_names() -> None:
    assert figures.literal("飞机汽车", 5) == "飞机…"
    assert figures.literal("cat", 3) == "cat"
    assert figures.literal("a$b", 3) == r"a\$b"
