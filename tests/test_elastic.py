"""One process, then three, then two: the stream is a function of the step alone, and the change is listed once."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from faults.harness import Run

FLAGS = ("--group_norm", "--dropout", "0", "--save_every", "4steps", "--log_every", "2")
TOLERANCE = 8e-3
STEPS = 26


@pytest.mark.parametrize(
    "ways",
    [
        [("KILL", 1, 9), ("KILL", 3, 17), ("", 2, STEPS)],
        pytest.param([("TERM", 2, 5), ("KILL", 1, 14), ("TERM", 1, 19), ("", 3, STEPS)], marks=pytest.mark.slow),
    ],
)
def test_other_numbers_of_processes(
    ways: list[tuple[str, int, int]], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The same (step, sample, draws, pixels) as one process throughout; each exactly once a step over all ranks.

    With group normalisation a sample's loss is its own, so only the order of float32 sums differs: 1e-7 of a gradient,
    which 26 steps with momentum make into less than 1e-3 of a loss of about 2. A slice that weighs wrong, a sample
    twice, another seed give a hundred times as much (see the last test). Batch statistics over other slices differ by
    more than any such tolerance: they belong to the shape of the machine.
    """
    run, alone = tiny(*FLAGS), clean(*FLAGS)
    for name, ranks, step in ways:
        env = {"KILL_AT": f"step:{step}", "KILL_SIGNAL": name, "KILL_RANK": str(ranks - 1)} if name else {}
        env |= {"SAVES_WAIT": "1"}  # the shape of each is in a checkpoint
        slow = {"STEP_SECONDS": "0.1"} if name == "TERM" and ranks > 1 else {}  # ranks ask each other once a second
        job = run.go(ranks=ranks, **env, **slow)
        assert {"KILL": -9, "TERM": 75, "": 0}[name] in job.codes, job.text
    assert run.samples() == alone.samples()
    for row in run.step_log():
        positions = [sample[0] for sample in row["samples"]]
        assert positions == list(range(positions[0], positions[0] + len(positions)))
    check_each_once(run)
    check_losses(run, alone)
    check_listed_once(run, [ranks for _, ranks, _ in ways])


def check_each_once(run: Run) -> None:
    """Within one attempt at a step no two ranks take the same sample, and none is left out."""
    for step, samples in run.samples().items():
        assert [sample[0] for sample in samples] == list(range(step * 20, step * 20 + 20))
    by_rank: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for row in run.step_log():
        by_rank.setdefault((row["step"], row["rank"]), set()).add(tuple(sample[0] for sample in row["samples"]))
    for (step, rank), slices in by_rank.items():
        assert all(len(piece) in (6, 8, 10, 20) for piece in slices), (step, rank, slices)


def check_losses(run: Run, alone: Run) -> None:
    mine, other = ([row["loss"] for row in r.rows() if row["kind"] == "train"] for r in (run, alone))
    assert len(mine) == len(other) == STEPS // 2
    apart = [abs(a - b) for a, b in zip(mine, other, strict=True)]
    assert max(apart) < TOLERANCE, apart
    rates = ([row["lr"] for row in r.rows() if row["kind"] == "train"] for r in (run, alone))
    assert next(rates) == next(rates)


def check_listed_once(run: Run, ranks: list[int]) -> None:
    changes = [f"processes: {a} -> {b}" for a, b in pairwise(ranks) if a != b]
    listed = [line for event in run.events("shape_changed") for line in event["changes"] if "processes" in line]
    assert listed == changes
    lines = [line.strip() for line in run.log().splitlines() if line.strip().startswith("processes:")]
    assert lines == changes
    assert run.log().count("The shape of the machine has changed") == len(changes)


def test_micro_batches_change_no_sample(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Operational: it may change from one attempt to the next, and is listed."""
    run = tiny(*FLAGS)
    run.killed("step:9")
    run.finish("--micro_batch", "6")
    assert run.samples() == clean(*FLAGS).samples()
    assert [event["changes"] for event in run.events("shape_changed")] == [["micro_batch: 0 -> 6"]]
    check_losses(run, clean(*FLAGS))


def test_the_tolerance_tells_something(clean: Callable[..., Run]) -> None:
    """Another seed, no augmentation, or a learning rate that is a tenth higher, are found out."""
    alone = clean(*FLAGS)
    for flags in (("--seed", "5"), ("--shift", "0"), ("--peak_lr", "0.11")):
        other, mine = (
            [r["loss"] for r in run.rows() if r["kind"] == "train"] for run in (clean(*FLAGS, *flags), alone)
        )
        assert max(abs(a - b) for a, b in zip(mine, other, strict=True)) > 2 * TOLERANCE
