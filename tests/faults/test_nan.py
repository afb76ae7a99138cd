"""Losses, gradients and weights that are no numbers: skipped, or the end; never in a checkpoint."""

import json
import math
from collections.abc import Callable

import pytest
import safetensors.numpy
from faults.harness import UNDER_WAY, Run, assert_same
from faults.holding import stopped

from pitstop import checkpoint

SAVES = ("--save_every", "3steps", "--keep", "100")
LONG = ("--epochs", "6")  # 51 steps
FP16 = ("--precision", "fp16", "--images", "68", "--batch_size", "8")
EMULATED = {"PITSTOP_TEST_EMULATE_FP16": "1"}


def strict(text: str) -> object:
    """JSON as other languages read it: it knows no NaN."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def check_checkpoints(run: Run) -> list[int]:
    """Reads every tensor of every checkpoint, by another way than pitstop's. Returns their steps."""
    names = run.checkpoints()
    assert all(name.startswith("step-") for name in names), names
    found = []
    for name in names:
        path = run.path / "checkpoints" / name
        checkpoint.verify(path)
        tensors = safetensors.numpy.load_file(path / "state.safetensors")
        assert len(tensors) > 20
        wrong = [key for key, values in tensors.items() if not math.isfinite(float(abs(values).sum()))]
        assert not wrong, f"{name}: {wrong}"
        found.append(int(name.removeprefix("step-")))
    return found


def losses(run: Run) -> dict[int, float]:
    return {row["step"]: float(row["loss"]) for row in run.rows() if row["kind"] == "train"}


@pytest.mark.parametrize(
    ("flags", "env"),
    [((), {}), (("--precision", "bf16"), {}), (("--clip_grad_norm", "0.5"), {})],
    ids=["fp32", "bf16", "fp32, clipping"],
)
def test_once(flags: tuple[str, ...], env: dict[str, str], tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """The update of step 10 is skipped, and that is all: no weight is NaN, and a kill in between changes no bit."""
    run = tiny(*flags, *SAVES, NAN_AT="10-10")
    run.killed("step:12", **UNDER_WAY)
    run.finish()
    whole = clean(*flags, NAN_AT="10-10")
    assert_same(run, whole)
    assert check_checkpoints(run) == [*range(3, 26, 3), 26]
    assert run.final() != clean(*flags).final()
    nan = [step for step, loss in losses(run).items() if not math.isfinite(loss)]
    assert nan == [14], "the row in which it was"
    assert math.isfinite(run.status()["result"]["loss"])


def test_the_update_of_that_step_alone_is_missing(tiny: Callable[..., Run]) -> None:
    """The weights after step 10 are those after step 9; without the fault they are not."""
    for fault, same in (("10-10", True), ("", False)):
        run = tiny("--save_every", "1steps", "--keep", "100", "--epochs", "1.3", NAN_AT=fault)
        run.finish()
        before, after = (
            safetensors.numpy.load_file(run.path / "checkpoints" / f"step-{step:08d}" / "state.safetensors")
            for step in (9, 10)
        )
        names = [name for name in before if name.endswith("weight") and name.startswith(("model/", "optimizer/"))]
        assert names
        assert all((before[name] == after[name]).all() for name in names) == same


def test_files_stay_json(tiny: Callable[..., Run]) -> None:
    run = tiny("--save_every", "1steps", "--keep", "100", "--epochs", "1.3", NAN_AT="10-10")
    run.finish()
    for name in ("metrics.jsonl", "events.jsonl"):
        for line in (run.path / name).read_text().splitlines():
            strict(line)
    strict((run.path / "status.json").read_text())


def test_manifests_stay_json(tiny: Callable[..., Run]) -> None:
    """The losses since the last row are in it, one of them NaN."""
    run = tiny("--save_every", "1steps", "--keep", "100", "--epochs", "1.3", NAN_AT="10-10")
    run.finish()
    for path in sorted((run.path / "checkpoints").glob("*/manifest.json")):
        strict(path.read_text())


@pytest.mark.parametrize(("ranks", "flags"), [(1, ()), (3, ()), (1, ("--clip_grad_norm", "1"))])
def test_twenty_in_a_row(
    ranks: int, flags: tuple[str, ...], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The run stops, on all ranks at the same step, whosever loss it was; what is on the disk is good and goes on."""
    run = tiny(*LONG, *SAVES, *flags, ranks=ranks)
    job = run.go(NAN_AT="8-1000", NAN_RANK=str(ranks - 1), STEP_SECONDS="0.02" if ranks > 1 else "0")
    assert set(job.codes) == {76}, job.text
    assert "Traceback" not in job.text
    status = stopped(run, "person")
    last = {rank: max(row["step"] for row in run.step_log() if row["rank"] == rank) + 1 for rank in range(ranks)}
    assert set(last.values()) == {status["step"]}, last
    assert 27 <= int(str(status["step"])) < 51
    assert ranks > 1 or status["step"] == 27
    assert "--peak_lr" in str(status["reason"])
    assert ("--clip_grad_norm" in str(status["reason"])) == (not flags)
    steps = check_checkpoints(run)
    assert status["step"] in steps
    assert "the last good one is that of step" in str(status["reason"])
    run.finish()
    assert check_checkpoints(run)[-1] == 51


def test_nineteen_in_a_row_and_a_good_one(tiny: Callable[..., Run]) -> None:
    run = tiny(*LONG)
    run.finish(NAN_AT="8-26")
    assert math.isfinite(run.status()["result"]["loss"])


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_weight_that_is_nan(ranks: int, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """No check of gradients has seen it, as after a fault of the memory: it is not saved, and the run stops."""
    run = tiny(*SAVES, ranks=ranks)
    job = run.go(POISON_AT="10", STEP_SECONDS="0.05")
    assert set(job.codes) == {76}, job.text
    assert "Traceback" not in job.text
    assert check_checkpoints(run) == [3, 6, 9]
    status = stopped(run, "person")
    assert "hold infinities or NaN" in str(status["reason"])
    assert "the last good one is that of step 9" in str(status["reason"])
    for said in (job.text, run.log()):
        assert "CHECKPOINT OF STEP 12 IS NOT SAVED" in said
    run.finish()
    assert_same(run, clean(ranks=ranks))


def test_a_weight_that_is_nan_at_the_end(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """No step follows that could stop: the run must not call itself finished."""
    run = tiny(*SAVES)
    job = run.go(POISON_AT="26")
    assert job.codes == [76], job.text
    assert check_checkpoints(run)[-1] < 26
    assert not (run.path / "final").exists()
    stopped(run, "person")
    run.finish()
    assert_same(run, clean())


def test_signals_do_not_save_what_is_poisoned(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(*SAVES)
    job = run.go(POISON_AT="10", KILL_AT="step:11", KILL_SIGNAL="TERM")
    assert check_checkpoints(run) == [3, 6, 9]
    assert job.codes == [76], job.text
    stopped(run, "person")
    run.finish()
    assert_same(run, clean())
