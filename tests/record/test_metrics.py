"""metrics.jsonl: exact means, whenever a checkpoint was taken; cut, missing bytes; numbers that JSON lacks."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import results

from pitstop.record import WALL_CLOCK_FIELDS, Metrics


def loss(step: int, rank: int = 0) -> torch.Tensor:
    """Values whose float32 sums depend on their order."""
    return torch.tensor(math.exp(math.sin(7 * step + 3 * rank) * 9), dtype=torch.float32)


def exact_mean(steps: range, world: int = 1) -> float:
    return float(sum(Fraction(loss(s, r).item()) for s in steps for r in range(world)) / len(steps))


def opened(path: Path | None, world: int = 1, size: int = 0) -> Metrics:
    metrics = Metrics(path, world)
    assert metrics.open_at(size) == 0
    return metrics


def run(path: Path | None, saves: set[int], rank: int = 0, world: int = 1, steps: int = 24) -> list[dict[str, float]]:
    """Rows every 8 steps; at each save the state goes through JSON into a fresh object, as in a restart."""
    metrics, rows, size = opened(path, world), list[dict[str, float]](), 0
    for step in range(1, steps + 1):
        metrics.add({"loss": loss(step, rank), "other": -loss(step, rank)})
        if step % 8 == 0:
            rows.append({"step": step, **metrics.means()})
            metrics.write({"kind": "train", **rows[-1]})
        if step in saves:
            state = json.loads(json.dumps(metrics.state_dict()))
            size = metrics.flush()
            metrics.write({"kind": "eval", "step": step})  # of an attempt that dies before the next checkpoint
            metrics = opened(path, world, size)
            metrics.load_state_dict(state)
    return rows


def test_rows_are_the_exact_means(tmp_path: Path) -> None:
    rows = run(tmp_path / "m.jsonl", saves=set())
    assert [row["step"] for row in rows] == [8, 16, 24]
    for row in rows:
        step = int(row["step"])
        expected = exact_mean(range(step - 7, step + 1))
        assert row["loss"] == pytest.approx(expected, rel=1e-15)
        assert row["other"] == -row["loss"]


@pytest.mark.parametrize("saves", [{1}, {7, 8, 9}, {3, 5, 12, 13, 20}, set(range(1, 25))])
def test_rows_do_not_depend_on_checkpoints(tmp_path: Path, saves: set[int]) -> None:
    run(tmp_path / "plain.jsonl", saves=set())
    run(tmp_path / "saved.jsonl", saves)
    plain, saved = (tmp_path / "plain.jsonl").read_text(), (tmp_path / "saved.jsonl").read_text()
    assert plain.count("\n") == 3
    if 24 in saves:  # the last save's row of the attempt that died is cut by nobody
        saved = saved.removesuffix('{"kind": "eval", "step": 24}\n')
    assert saved == plain


def on_rank(rank: int, world: int, folder: str, saves: list[int]) -> list[dict[str, float]]:
    return run(Path(folder) / "m.jsonl" if rank == 0 else None, set(saves), rank, world)


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_the_ranks_add_up(tmp_path: Path, world: int) -> None:
    plain = results(world, on_rank, str(tmp_path), [])
    rows = (tmp_path / "m.jsonl").read_text()
    saved = results(world, on_rank, str(tmp_path), [2, 11, 12, 17])
    assert all(rank == plain[0] for rank in plain + saved)
    assert (tmp_path / "m.jsonl").read_text() == rows
    for row in plain[0]:
        step = int(row["step"])
        assert row["loss"] == pytest.approx(exact_mean(range(step - 7, step + 1), world), rel=1e-14)


def test_nothing_is_read_from_the_device_between_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, reads = opened(tmp_path / "m.jsonl"), list[str]()
    for name in ("item", "tolist", "__float__", "cpu"):
        real = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, real: Any = real, name: str = name) -> Any:
            reads.append(name)
            return real(self)

        monkeypatch.setattr(torch.Tensor, name, read)
    for step in range(50):
        metrics.add({"loss": loss(step), "norm": loss(step)})
    assert reads == []
    metrics.means()
    assert len(reads) == 2, "once for each name, not for each step"


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    metrics = opened(path)
    metrics.add({"loss": torch.tensor(float("nan")), "norm": torch.tensor(float("inf"))})
    metrics.write({"kind": "train", "step": 1, **metrics.means(), "low": -math.inf, "lr": 0.1})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"kind": "train", "step": 1, "loss": "nan", "norm": "inf", "low": "-inf", "lr": 0.1}


def test_a_not_finite_step_survives_a_checkpoint(tmp_path: Path) -> None:
    metrics = opened(tmp_path / "m.jsonl")
    metrics.add({"loss": torch.tensor(float("nan"))})
    state = json.loads(json.dumps(metrics.state_dict()))
    again = opened(tmp_path / "n.jsonl")
    again.load_state_dict(state)
    again.add({"loss": torch.tensor(1.0)})
    assert math.isnan(again.means()["loss"])
    again.add({"loss": torch.tensor(2.0)})
    assert again.means() == {"loss": 2.0}, "the next row begins afresh"


def test_what_a_checkpoint_does_not_cover_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    metrics = opened(path)
    metrics.write({"step": 1})
    size = metrics.flush()
    assert size == path.stat().st_size == len('{"step": 1}\n')
    metrics.write({"step": 2})
    path.write_bytes(path.read_bytes() + b'{"step": 3, "los')
    opened(path, size=size).write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_missing_bytes_are_counted_and_what_is_left_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n')
    assert Metrics(path, 1).open_at(40) == 40 - 12
    assert path.read_text() == '{"step": 1}\n'
    assert Metrics(tmp_path / "none.jsonl", 1).open_at(7) == 7


def test_ranks_that_write_nothing() -> None:
    metrics = opened(None, size=100)
    metrics.write({"step": 1})
    assert metrics.flush() == 0


def test_the_fields_of_the_wall_clock_are_named() -> None:
    by_clock = {"time", "images_per_second", "seconds", "goodput", "cost", "gpu_utilization", "gpu_memory_gb"}
    assert set(WALL_CLOCK_FIELDS) == by_clock
