"""Rows of metrics.jsonl by number, how much of the file counts, and what becomes of a row at a tracker."""

import json
import math
from pathlib import Path

import pytest

from pitstop.curves.rows import Rows, covered_bytes, values


def written(path: Path, number: int) -> list[int]:
    """Lengths in bytes after each of so many rows."""
    lengths = []
    with open(path, "ab") as file:
        for step in range(number):
            row = {"kind": "train", "step": step, "note": "\u2028 is no end of a line"}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            lengths.append(file.tell())
    return lengths


@pytest.mark.parametrize("first", [0, 1, 3, 7, 12])
def test_rows_are_given_once_from_the_first_that_is_missing(tmp_path: Path, first: int) -> None:
    ends = written(tmp_path / "m.jsonl", 10)
    rows, given = Rows(tmp_path / "m.jsonl", first), []
    for size in (0, ends[1], ends[1], ends[4], ends[3], ends[9]):
        given += [row["step"] for row in rows.up_to(size)]
    assert given == list(range(first, 10))


def test_what_is_not_covered_or_not_whole_waits(tmp_path: Path) -> None:
    ends = written(tmp_path / "m.jsonl", 3)
    rows = Rows(tmp_path / "m.jsonl", 0)
    assert [row["step"] for row in rows.up_to(ends[1] - 1)] == [0], "the second row is cut"
    assert [row["step"] for row in rows.up_to(ends[1])] == [1]
    assert Rows(tmp_path / "none.jsonl", 0).up_to(100) == []


@pytest.mark.parametrize("first", [0, 2, 4])
def test_lines_that_are_no_rows_are_passed_over_and_not_counted(tmp_path: Path, first: int) -> None:
    path = tmp_path / "m.jsonl"
    ends = []
    for line in (b'{"kind": "train", "st', b"", b"[1]", b'"x"', b"{}", b"\xff", b'{"kind": "a"}'):
        written(path, 1)
        with open(path, "ab") as file:
            file.write(line + b"\n")
            ends.append(file.tell())
    rows = Rows(path, first)
    assert len(rows.up_to(ends[2])) == max(0, 3 - first)
    assert len(rows.up_to(ends[-1])) == 4 - max(0, first - 3)


def run_with(path: Path, state: str | None, covered: dict[int, int | None]) -> Path:
    """A run directory of 5 rows with checkpoints, step -> metrics_bytes (None: a damaged manifest)."""
    written(path / "metrics.jsonl", 5)
    if state:
        (path / "status.json").write_text(json.dumps({"state": state}))
    for step, size in covered.items():
        folder = path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("" if size is None else json.dumps({"metrics_bytes": size}))
    return path


def test_only_rows_that_will_not_be_written_anew_go_out(tmp_path: Path) -> None:
    for name, state, covered, expected in (
        ("finished", "finished", {5: 7}, None),
        ("killed", "running", {5: 7, 12: 9, 9: 8}, 9),
        ("damaged", "stopped", {5: 7, 12: None}, 7),
        ("young", None, {}, 0),
    ):
        (tmp_path / name).mkdir()
        run = run_with(tmp_path / name, state, covered)
        whole = (run / "metrics.jsonl").stat().st_size
        assert covered_bytes(run) == (whole if expected is None else expected), name


def test_values_of_a_row() -> None:
    row = {"kind": "eval", "step": 40, "time": "2026-11-24T18:00:00.500+00:00", "loss": "nan", "lr": 0.5}
    classes = {"class_accuracy": {"cat": 0.25, "a/b": 1, "\u732b": "nan"}}
    sent = values(row | {"worst": "-inf", "name": "cat", "media": {"c": []}} | classes)
    assert math.isnan(sent.pop("eval/class_accuracy/\u732b"))
    assert math.isnan(sent.pop("eval/loss"))
    assert sent == {
        "eval/lr": 0.5,
        "eval/worst": -math.inf,
        "eval/name": "cat",
        "eval/class_accuracy/cat": 0.25,
        "eval/class_accuracy/a/b": 1,
        "global_step": 40,
        "_timestamp": 1795543200.5,
    }
