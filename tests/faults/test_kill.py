"""Killed with -9, once or again and again, and started again: the run ends as if nothing had been."""

import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from faults.harness import UNDER_WAY, Run, assert_same

STEPS = 26
EVALUATIONS = (9, 17)  # steps at whose start a further epoch of 170 images is full
SAVES = ("--save_every", "5steps")
FP16 = ("--precision", "fp16", "--images", "68", "--batch_size", "8")  # as many steps; float16 is slow on a CPU
EMULATED = {"PITSTOP_TEST_EMULATE_FP16": "1"}

INSTANTS = {
    "first step": ["step:1"],
    "before the first save": ["commit:3"],
    "mid-epoch": ["step:13"],
    "at a save": ["commit:10"],
    "epoch end": ["commit:9"],
    "evaluation": ["eval:9"],
    "final evaluation": ["eval:26"],
    "last step": ["step:26"],
    "after the last step": ["commit:26"],
    "finishing": ["finish:before"],
    "finishing, model written": ["finish:after_final"],
    "again and again": ["restored", "step:2", "step:7", "step:7", "commit:10", "eval:17", "restored", "finish:before"],
}
KINDS: dict[str, tuple[tuple[str, ...], int, dict[str, str]]] = {
    "accumulation": (("--micro_batch", "6"), 1, {}),
    "clipping": (("--clip_grad_norm", "0.5"), 1, {}),
    "bf16": (("--precision", "bf16"), 1, {}),
    "fp16": (FP16, 1, EMULATED),
    "fp16, clipping": ((*FP16, "--clip_grad_norm", "0.5"), 1, EMULATED),
    "2 ranks": ((), 2, {}),
    "2 ranks, bf16": (("--precision", "bf16"), 2, {}),
    "2 ranks, accumulation": (("--micro_batch", "4"), 2, {}),
    "3 ranks": ((), 3, {}),
}


def test_clean_run(clean: Callable[..., Run]) -> None:
    """What all others are compared with: evaluations at the epochs, rows where they belong, every sample once."""
    run = clean()
    train = [row["step"] for row in run.rows() if row["kind"] == "train"]
    assert train == [7, 14, 21, 26]
    assert [row["step"] for row in run.rows() if row["kind"] == "eval"] == [*EVALUATIONS, STEPS]
    samples = [sample for step in run.samples().values() for sample in step]
    assert [position for position, *_ in samples] == list(range(STEPS * 20))
    orders = [[index for _, index, *_ in samples[start : start + 170]] for start in (0, 170, 340)]
    assert all(sorted(order) == list(range(170)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert len({drawn for _, _, drawn, _ in samples}) == len(samples), "two samples share their random numbers"


def test_two_clean_runs_are_equal_and_another_seed_is_not(clean: Callable[..., Run], tiny: Callable[..., Run]) -> None:
    again, other = tiny(*SAVES), tiny("--seed", "1")
    again.finish()
    other.finish()
    assert_same(again, clean())
    assert other.final()["model.safetensors"] != clean().final()["model.safetensors"]


@pytest.mark.parametrize("instants", INSTANTS.values(), ids=INSTANTS.keys())
def test_killed_at(instants: list[str], tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    for instant in instants:
        run.killed(instant, **UNDER_WAY)
    run.finish()
    assert_same(run, clean())
    assert run.status()["attempt"] == len(instants) + 1


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "ranks", "env"), KINDS.values(), ids=KINDS.keys())
def test_killed_in_every_way_of_computing(
    flags: tuple[str, ...], ranks: int, env: dict[str, str], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """Five kills, on any rank, at instants from a seed: before the first save, in an evaluation, at the end."""
    chance = random.Random(f"{flags} {ranks}")
    run = tiny(*flags, *SAVES, ranks=ranks, **env)
    steps = sorted(chance.sample(range(6, STEPS), 2))
    middle = [f"{chance.choice(('step', 'commit'))}:{step}" for step in steps]
    for instant in ["commit:4", *middle, f"eval:{STEPS}", "finish:before"]:
        run.killed(instant, KILL_RANK=str(chance.randrange(ranks)), **UNDER_WAY)
    run.finish()
    assert_same(run, clean(*flags, ranks=ranks, **env))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_time_with_saves_by_the_clock(
    seed: int, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """Not at a named instant, but whenever the clock says, from the outside."""
    chance = random.Random(seed)
    run = tiny("--save_every", "0.2s", STEP_SECONDS="0.03")
    for _ in range(4):
        job = run.start()
        time.sleep(chance.uniform(0.3, 1.5))
        job.kill()
    run.finish()
    assert_same(run, clean())


def test_saves_by_the_clock_are_taken(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "0.2s", STEP_SECONDS="0.03")
    run.finish()
    saved = [event["step"] for event in run.events("save")]
    assert len(saved) > 3
    assert saved[-1] == STEPS


@pytest.mark.parametrize("killed_rank", [0, 2])
def test_three_ranks_killed_in_the_first_step_and_later(
    killed_rank: int, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """From three ranks up a rebuilt bucket of DDP adds up in another order: a restart would change bits."""
    run = tiny(*SAVES, ranks=3)
    for instant in ("step:1", "step:8", "eval:17"):
        run.killed(instant, KILL_RANK=str(killed_rank), **UNDER_WAY)
    run.finish()
    assert_same(run, clean(ranks=3))


@pytest.mark.parametrize("save_every", ["4steps", "7steps", "1steps"])
def test_the_row_that_is_half_done_survives(
    save_every: str, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """Means over seven steps, cut by a restart at any place between two rows."""
    run = tiny("--save_every", save_every)
    for instant in ("step:5", "step:6", "step:13", "commit:14", "step:15", "step:25"):
        run.killed(instant, **UNDER_WAY)
    run.finish()
    assert_same(run, clean())


def test_overflow_of_fp16_before_and_after_a_resume(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The scale has backed off before the restart and does so after it, at the very steps of an unbroken run."""
    whole = clean(*FP16, **EMULATED)
    scales = [row["scale"] for row in whole.step_log()]
    backoffs = [step for step, (before, after) in enumerate(pairwise(scales), 1) if after < before]
    assert [step for step in backoffs if step <= 12], f"no overflow before the restart: {scales}"
    assert [step for step in backoffs if step > 12], f"no overflow after the restart: {scales}"
    run = tiny(*FP16, "--save_every", "4steps", **EMULATED)
    run.killed("step:14")
    saved = run.manifest("step-00000012")["state"]["scaler"]
    assert saved["scale"] == scales[11] != 65536.0  # the log gives the scale after each step
    run.finish()
    assert_same(run, whole)
    assert {row["step"]: row["scale"] for row in run.step_log()} == dict(enumerate(scales))


def test_rows_beyond_the_checkpoint_are_cut(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The row of step 14 is on disk when the newest checkpoint is that of step 10."""
    run = tiny("--save_every", "5steps")
    run.killed("step:6")
    run.killed("step:15")
    assert [name for name in run.checkpoints() if name.startswith("step")] == ["step-00000005", "step-00000010"]
    run.finish()
    assert_same(run, clean())


def test_torn_lines_do_not_matter(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """A crash of the machine may leave half a line in any of the files that are appended to."""
    run = tiny(*SAVES)
    run.killed("step:13")
    for name in ("metrics.jsonl", "events.jsonl", "train.log"):
        with open(run.path / name, "ab") as file:
            file.write(b'{"kind": "train", "step": 1')
    run.finish()
    assert_same(run, clean())
    assert len(run.events("attempt")) == 2


def test_a_damaged_status_does_not_matter(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    run.killed("step:13")
    (run.path / "status.json").write_bytes(b"\x00" * 100)
    run.finish()
    assert_same(run, clean())


def test_killed_from_outside_at_once(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """In the first tenths of a second: config.json, the lock, nothing, whatever there is."""
    run = tiny(*SAVES)
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4):
        job = run.start()
        time.sleep(delay)
        job.signal(signal.SIGKILL)
        job.wait()
    run.finish()
    assert_same(run, clean())
