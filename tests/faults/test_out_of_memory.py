"""No memory for so many images: probed, met in the middle, on one of several ranks, in an evaluation, at the floor.

tests/tiny.py's device ends in the middle of the model, after the statistics of batch normalisation before it have
changed. The oracle is a run that was given the smaller micro-batch from that step on by its flag.
"""

import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from faults.harness import Run, assert_same
from faults.test_launch import Launched, words

STEP = 8
STEPS = 13  # of 20 images each
SHORT = ("--epochs", "1.5")
PROBE = {"PITSTOP_TEST_PROBE_ON_CPU": "1"}
FP16 = {"PITSTOP_TEST_EMULATE_FP16": "1"}
KEEP = (*SHORT, "--save_every", "1steps", "--keep", "99")


def from_step(tiny: Callable[..., Run], images: int, *flags: str, **options: Any) -> Run:
    """The run whose steps from STEP on (counted from 1) have so many images at once, by its flag; computed in two
    attempts, of which the first is killed before it could commit step STEP."""
    run = tiny(*flags, *KEEP, **options)
    run.killed(f"step:{STEP}")
    run.finish("--micro_batch", str(images))
    assert [event["step"] for event in run.events("restore")] == [STEP - 1]
    return run


def shortages(run: Run) -> list[tuple[str, int, int, int]]:
    return [(event["where"], event["from"], event["to"], event["step"]) for event in run.events("out_of_memory")]


def micro_batches(run: Run) -> list[int]:
    """Of the checkpoints, by step."""
    return [run.manifest(name)["shape"]["micro_batch"] for name in run.checkpoints()]


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (("--clip_grad_norm", "1"), {"MEMORY_IN": "forward"}),
        ((), {"MEMORY_IN": "backward"}),
        pytest.param(("--precision", "fp16", "--clip_grad_norm", "0.5"), FP16, marks=pytest.mark.slow),  # and the scale
    ],
)
def test_in_the_middle(flags: tuple[str, ...], env: dict[str, str], tiny: Callable[..., Run]) -> None:
    """Momentum, dropout, an average of the weights and the loss scale too are what they would have been."""
    run = tiny(*flags, *KEEP, **env)
    job = run.finish(MEMORY=f"10@{STEP}-{STEPS}")
    assert_same(run, from_step(tiny, 10, *flags, **{k: v for k, v in env.items() if k != "MEMORY_IN"}))
    assert run.status()["attempt"] == 1
    assert shortages(run) == [("training", 20, 10, STEP - 1)]
    assert "out of memory with 20 images at once (Tried to allocate 2.00 GiB) in step 7" in job.text
    changes = [(event["step"], event["changes"]) for event in run.events("shape_changed")]
    assert changes == [(STEP - 1, ["micro_batch: 0 -> 10"])]
    assert micro_batches(run) == [0] * (STEP - 1) + [10] * (STEPS - STEP + 1)


def test_in_the_middle_and_again(tiny: Callable[..., Run]) -> None:
    """From 20 images at once to 2; and no sample is lost or counted twice."""
    run = tiny(*KEEP)
    run.finish(MEMORY=f"3@{STEP}-{STEPS}")
    assert_same(run, from_step(tiny, 2))
    assert shortages(run) == [("training", a, b, STEP - 1) for a, b in pairwise((20, 10, 4, 2))]


def test_with_batches_that_were_cut_before(tiny: Callable[..., Run]) -> None:
    """The workers of a loader are some steps ahead."""
    run = tiny(*KEEP, WORKERS="2")
    run.finish(MEMORY=f"10@{STEP}-{STEPS}")
    assert_same(run, from_step(tiny, 10))
    assert len(shortages(run)) == 1


def test_the_probe_changes_nothing(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Neither statistics, nor gradients, nor generators; on three ranks neither the buckets of DDP."""
    run = tiny(*SHORT, **PROBE)
    run.finish()
    assert_same(run, clean(*SHORT))
    run = tiny(*SHORT, ranks=3, **PROBE)
    run.killed("step:9")
    run.finish()
    assert_same(run, clean(*SHORT, ranks=3))


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_probe_finds_out(ranks: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Before the first step; of several ranks the smallest answer counts."""
    run = tiny(*SHORT, ranks=ranks, **PROBE)
    run.finish(MEMORY="5", MEMORY_RANK=str(ranks - 1))
    micro_batch = 4
    assert_same(run, clean(*SHORT, "--micro_batch", str(micro_batch), ranks=ranks))
    probes = shortages(run)
    assert [(a, b) for _, a, b, _ in probes] == {1: [(20, 10), (10, 4)], 3: [(8, 4)]}[ranks]
    assert {(where, step) for where, _, _, step in probes} == {("probe", 0)}
    assert run.events("shape_changed") == []
    assert run.events("start")[0]["shape"]["micro_batch"] == micro_batch


def test_the_next_attempt_keeps_it(tiny: Callable[..., Run]) -> None:
    """It does not try again what is known to fail, though the checkpoint is older; until it is asked for by name."""
    run = tiny(*SHORT, "--save_every", "5steps")
    run.killed("step:9", MEMORY=f"10@{STEP}-{STEPS}")
    assert micro_batches(run) == [0]
    run.killed("step:12", MEMORY="10@0-3")
    assert run.events("start")[1]["shape"]["micro_batch"] == 10
    assert [event["changes"] for event in run.events("shape_changed")] == [["micro_batch: 0 -> 10"]] * 2
    run.finish("--micro_batch", "0")
    assert run.events("start")[2]["shape"]["micro_batch"] == 0
    assert run.events("shape_changed")[-1]["changes"] == ["micro_batch: 10 -> 0"]
    assert len(shortages(run)) == 1


def test_a_smaller_device_and_a_larger_one(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The same samples in the same order, the same batch, the same learning rates."""
    run = tiny(*KEEP, **PROBE)
    run.killed("step:5", MEMORY="10")
    run.killed("step:9", MEMORY="4")
    run.finish()
    assert [event["shape"]["micro_batch"] for event in run.events("start")] == [10, 4, 4]
    assert [event["changes"] for event in run.events("shape_changed")] == [["micro_batch: 10 -> 4"]]
    plain = clean(*SHORT)
    assert run.samples() == plain.samples()
    rates = [[row["lr"] for row in r.rows() if row["kind"] == "train"] for r in (run, plain)]
    assert rates[0] == rates[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 2])
def test_one_of_three_ranks_in_the_middle(rank: int, tiny: Callable[..., Run]) -> None:
    """The others wait for it in a sum: all end within seconds, not after the group's ten minutes; the next attempt
    takes half, by the same command."""
    run = tiny(*KEEP, ranks=3)
    env = {"MEMORY": f"4@{STEP}-{STEPS}", "MEMORY_RANK": str(rank), "SAVES_WAIT": "1"}
    begun = time.monotonic()
    job = run.go(**env)
    assert time.monotonic() - begun < 30
    assert job.codes[rank] in (1, -15, -9), job.text
    assert all(job.codes)
    assert shortages(run) == [("training", 8 if rank == 2 else 6, 2 if rank == 0 else 4, STEP - 1)]
    assert run.events("out_of_memory")[0]["rank"] == rank
    status = run.status()
    assert (status["state"], status["restart"]) == ("failed", "now")
    assert f"on rank {rank}" in status["reason"]
    assert "The next attempt" in job.text
    run.finish(**env)
    assert len(shortages(run)) == 1
    assert run.events("start")[1]["shape"]["micro_batch"] == shortages(run)[0][2]
    assert [event["step"] for event in run.events("restore")] == [STEP - 1]
    oracle = tiny(*KEEP, ranks=3)
    oracle.killed(f"step:{STEP}")
    oracle.finish("--micro_batch", str(shortages(run)[0][2]))
    assert_same(run, oracle)


@pytest.mark.slow
def test_under_pitstop_launch(tiny: Callable[..., Run]) -> None:
    """One command: two real ranks below accelerate, the second runs out of memory, and the next attempt finishes."""
    run = tiny(*KEEP, ranks=2)
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MEMORY": f"6@{STEP}-{STEPS}", "MEMORY_RANK": "1"}
    one = Launched(run.folder, "--processes", "2", SAVES_WAIT="1", **env, **words(*KEEP))
    try:
        assert one.end(180) == 0, one.text
    finally:
        one.process.kill()
        one.process.wait()
    assert shortages(run) == [("training", 10, 4, STEP - 1)]
    assert run.status()["attempt"] == 2
    assert "starting again in 1 s" in one.text
    oracle = tiny(*KEEP, ranks=2)
    oracle.killed(f"step:{STEP}")
    oracle.finish("--micro_batch", "4")
    assert_same(run, oracle)


def test_in_the_update(tiny: Callable[..., Run]) -> None:
    """The weights may be half updated: the next attempt, at once, takes half from the last checkpoint."""
    run = tiny(*KEEP)
    env = {"MEMORY": f"10@{STEP}-{STEPS}", "MEMORY_IN": "update", "SAVES_WAIT": "1"}
    job = run.go(**env)
    assert job.codes == [1], job.text
    assert (run.status()["state"], run.status()["restart"]) == ("failed", "now")
    assert run.checkpoints()[-1] == f"step-{STEP - 1:08d}"
    run.finish(**env)
    assert_same(run, from_step(tiny, 10))
    assert shortages(run) == [("update", 20, 10, STEP - 1)]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_in_an_evaluation(ranks: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Halved, and it goes on; what it says of each image is the same, and training does not change."""
    run, other = tiny(*SHORT, ranks=ranks), clean(*SHORT, ranks=ranks)
    run.finish(MEMORY="5", MEMORY_IN="evaluation", MEMORY_RANK="0")
    assert run.final() == other.final()
    evaluations = [[row for row in r.rows() if row["kind"] == "eval"] for r in (run, other)]
    for mine, plain in zip(*evaluations, strict=True):
        assert mine["accuracy"] == plain["accuracy"]
        assert mine["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert [row[:3] for row in shortages(run)] == [("evaluation", 17, 8), ("evaluation", 8, 4)]


@pytest.mark.parametrize(
    ("ranks", "env"),
    [(1, PROBE), (1, {}), (1, {"MEMORY_IN": "update"}), pytest.param(3, {"MEMORY_RANK": "1"}, marks=pytest.mark.slow)],
)
def test_the_floor(ranks: int, env: dict[str, str], tiny: Callable[..., Run]) -> None:
    """Two images do not fit: a person must turn another knob; nothing tries for ever."""
    run = tiny(*KEEP, ranks=ranks, MEMORY="1", **env)
    for _ in range(6):
        job = run.go()
        if run.status()["restart"] != "now":
            break
    status = run.status()
    assert (status["state"], status["restart"]) == ("stopped", "person")
    assert 76 in job.codes
    floor = "out of memory with 2 images at once (Tried to allocate 2.00 GiB), and fewer cannot be. What helps: "
    assert floor in status["reason"]
    assert "--precision bf16 instead of fp32 (about half), or a smaller --model than test_resnet" in status["reason"]
    assert re.search(r"weights, gradients and momentum take \d+ MB", job.text)
    assert shortages(run)[-1][1:3] == (2, 0)
    before = len(shortages(run))
    assert 76 in run.go().codes  # once more, at once: it is known
    assert len(shortages(run)) <= before + 1


def test_the_floor_of_an_evaluation(tiny: Callable[..., Run]) -> None:
    """Not even one image; and how much larger the model is than it must be is said."""
    run = tiny(*SHORT, MEMORY="0.5", MEMORY_IN="evaluation")
    assert run.go().codes == [76]
    assert "out of memory with 1 image at once" in run.status()["reason"]
    assert run.status()["restart"] == "person"
