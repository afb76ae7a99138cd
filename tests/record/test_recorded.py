"""What rows say beside loss and accuracy: it changes nothing, and kills change nothing of it."""

import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from faults.harness import UNDER_WAY, Run, assert_same
from faults.test_nan import strict
from safetensors.numpy import load_file

SAVES = ("--save_every", "5steps")
LOGS = ("--log_gradients", "True")
CLIPS = ("--clip_grad_norm", "0.5")
FP16 = ("--precision", "fp16", "--images", "68", "--batch_size", "8")
EMULATED = {"PITSTOP_TEST_EMULATE_FP16": "1"}
PICTURES = {"PICTURES": "1"}
GRADIENTS = {"grad_norm", "loss_scale"}


def lines(run: Run) -> list[dict[str, Any]]:
    """All of metrics.jsonl, what a clock has measured too."""
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def pictures(run: Run) -> dict[str, bytes]:
    """Every picture that a row names, by its path; all there are."""
    named = [shown["path"] for row in lines(run) for shots in row.get("media", {}).values() for shown in shots]
    there = [path for folder in ("samples", "predictions/samples") for path in (run.path / folder).glob("*")]
    assert sorted(named) == sorted(str(path.relative_to(run.path)) for path in there)
    return {name: (run.path / name).read_bytes() for name in named}


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        ((), {}),
        (CLIPS, {}),
        pytest.param(FP16, EMULATED, marks=pytest.mark.slow),
        pytest.param((*FP16, *CLIPS), EMULATED, marks=pytest.mark.slow),
    ],
    ids=["fp32", "fp32, clipping", "fp16", "fp16, clipping"],
)
def test_to_log_gradients_changes_no_bit(
    flags: tuple[str, ...], env: dict[str, str], clean: Callable[..., Run]
) -> None:
    silent, logs = clean(*flags, **env), clean(*flags, *LOGS, **env)
    assert logs.final() == silent.final()
    assert [{k: v for k, v in row.items() if k not in GRADIENTS} for row in logs.rows()] == silent.rows()
    expected = GRADIENTS if env else {"grad_norm"}
    for row in logs.rows():
        assert GRADIENTS & set(row) == (expected if row["kind"] == "train" else set())
    assert not any(GRADIENTS & set(row) for row in silent.rows())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "ranks", "env"),
    [((), 1, {}), (CLIPS, 1, {}), (FP16, 1, EMULATED), ((*FP16, *CLIPS), 1, EMULATED), ((), 3, {})],
    ids=["fp32", "fp32, clipping", "fp16", "fp16, clipping", "3 ranks"],
)
def test_rows_over_kills(
    flags: tuple[str, ...], ranks: int, env: dict[str, str], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """Norms, scales, class accuracies and the names of pictures; and the pictures."""
    run = tiny(*flags, *SAVES, *LOGS, ranks=ranks, **env, **PICTURES)
    for instant in ("step:1", "commit:3", "step:6", "step:13", "eval:17", "commit:21", "eval:26", "finish:after_final"):
        run.killed(instant, KILL_RANK="0" if instant.startswith("finish") else str(ranks - 1), **UNDER_WAY)
    run.finish()
    whole = clean(*flags, *LOGS, ranks=ranks, **env, **PICTURES)
    assert_same(run, whole)
    assert pictures(run) == pictures(whole)
    assert len(pictures(run)) > 20


@pytest.mark.parametrize(
    "instant",
    [
        "step:1",
        "commit:6",  # the row of step 7 is the next attempt's, which has not seen step 0
        "commit:7",  # it was written, and is not in the checkpoint of step 5
        "commit:4",  # nothing was saved: it begins anew
        "commit:12",  # it is in the checkpoint of step 10
    ],
)
def test_whichever_attempt_writes_the_first_row(
    instant: str, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run, whole = tiny(*SAVES), clean()
    run.killed(instant)
    run.finish()
    assert_same(run, whole)
    assert pictures(run) == pictures(whole)
    assert [row["step"] for row in lines(run) if "media" in row] == [7]
    assert len(pictures(run)) == 16


def test_the_bill_is_in_every_train_row(tiny: Callable[..., Run]) -> None:
    run = tiny("--price", "36")
    run.finish(STEP_SECONDS="0.02")
    trains = [row for row in lines(run) if row["kind"] == "train"]
    assert len(trains) == 4
    costs = [row["cost"] for row in trains]
    assert costs == sorted(costs)
    assert 0 < costs[-1] <= run.status()["cost"]
    assert all(0 < row["goodput"] < 1 for row in trains)
    assert trains[-1]["goodput"] == pytest.approx(run.status()["goodput"], abs=0.3)
    assert not any({"cost", "goodput"} & set(row) for row in lines(run) if row["kind"] != "train")
    free = tiny("--epochs", "0.4")
    free.finish()
    assert [("cost" in row, "goodput" in row) for row in lines(free) if row["kind"] == "train"] == [(False, True)]


def test_accuracies_of_classes_are_those_of_the_logits(clean: Callable[..., Run]) -> None:
    run = clean(*LOGS, **PICTURES)
    kept = load_file(run.path / "predictions" / "predictions.safetensors")
    right, labels = kept["logits_NK"].argmax(1) == kept["labels_N"], kept["labels_N"]
    expected = {str(label): round(float(right[labels == label].mean()), 6) for label in sorted(set(labels.tolist()))}
    evals = [row for row in lines(run) if row["kind"] == "eval"]
    assert evals[-1]["class_accuracy"] == expected
    assert all(set(row["class_accuracy"]) == set(expected) for row in evals)
    assert run.status()["result"].keys() == {"loss", "accuracy", "average"}


def test_the_norm_does_not_depend_on_the_number_of_ranks(clean: Callable[..., Run]) -> None:
    """Without dropout and batch normalisation the gradient is the same, whoever computes it."""
    flags = (*LOGS, "--group_norm", "True", "--dropout", "0", "--epochs", "1")
    one, three = (
        [row["grad_norm"] for row in clean(*flags, ranks=ranks).rows() if row["kind"] == "train"] for ranks in (1, 3)
    )
    assert three == pytest.approx(one, rel=1e-3)


def text_values(run: Run, name: str) -> dict[int, Any]:
    """Of each train row; the file must be JSON as other languages read it."""
    rows = [strict(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for path in (run.path / "checkpoints").glob("*/manifest.json"):
        strict(path.read_text())
    return {row["step"]: row[name] for row in rows if isinstance(row, dict) and row["kind"] == "train"}


def test_a_gradient_that_is_no_number_is_said_as_it_is(tiny: Callable[..., Run]) -> None:
    run = tiny(*LOGS, "--save_every", "1steps", "--keep", "100")
    run.killed("step:12", NAN_AT="10-10")
    run.finish(NAN_AT="10-10")
    norms = text_values(run, "grad_norm")
    assert norms[14] in ("nan", "inf")
    assert all(math.isfinite(norm) for step, norm in norms.items() if step != 14)


@pytest.mark.slow
def test_an_overflow_of_fp16_is_the_scalers_business(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Its norm is infinite in the row, and the run goes on; scales are means of what the step log has."""
    run = clean(*FP16, *LOGS, "--log_every", "1", **EMULATED)
    norms, scales = text_values(run, "grad_norm"), text_values(run, "loss_scale")
    after = {row["step"] + 1: row["scale"] for row in run.step_log()}
    overflown = [step for step in after if step > 1 and after[step] < after[step - 1]]
    assert len(overflown) >= 2
    for step, norm in norms.items():
        assert (norm in ("inf", "nan")) == (step in overflown or (step == 1 and after[1] < 65536)), step
        assert scales[step] == (after[step - 1] if step > 1 else 65536.0)
    assert run.status()["state"] == "finished"


def test_samples_that_another_machine_has_are_named_all_the_same(
    tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny(*SAVES)
    run.go(KILL_AT="step:2", KILL_SIGNAL="TERM")
    assert (run.path / "samples" / "15.png").exists(), "written in the first step"
    shutil.rmtree(run.path / "samples")
    run.finish()
    assert_same(run, clean())
    assert not (run.path / "samples").exists()
