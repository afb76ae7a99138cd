"""How many steps in a row were ill."""

import math

import pytest
import torch

from pitstop.health import Health

WELL, OVERFLOWN = torch.zeros(1), torch.ones(1)
NAN, INF = torch.tensor(math.nan), torch.tensor(math.inf)


@pytest.mark.parametrize(
    ("metrics", "overflow", "ill"),
    [
        ([torch.tensor(2.5)], WELL, False),
        ([torch.tensor(3.4e38), torch.tensor(-3.4e38)], WELL, False),
        ([torch.tensor(0.0)], torch.zeros(()), False),
        ([NAN], WELL, True),
        ([INF], WELL, True),
        ([-INF], WELL, True),
        ([torch.tensor(1.0), NAN], WELL, True),
        ([torch.tensor(math.nan, dtype=torch.float64)], WELL, True),
        ([torch.tensor(math.inf, dtype=torch.float16)], WELL, True),
        ([torch.tensor(1.0)], OVERFLOWN, True),
        ([torch.tensor(1.0)], torch.tensor(1.0), True),
        ([], OVERFLOWN, True),
        ([], WELL, False),
    ],
)
def test_one_step(metrics: list[torch.Tensor], overflow: torch.Tensor, ill: bool) -> None:
    state = Health()
    state.add(metrics, overflow)
    assert state.in_a_row() == int(ill)


def test_steps_in_a_row() -> None:
    state = Health()
    assert state.in_a_row() == 0
    counts = []
    for value in (1.0, math.nan, math.nan, 1.0, math.inf, math.inf, math.nan, 0.0, math.nan):
        state.add([torch.tensor(value)], WELL)
        counts.append(state.in_a_row())
    assert counts == [0, 1, 2, 0, 1, 2, 3, 0, 1]


def test_it_is_asked_for_nothing_but_tensors() -> None:
    """On the device: neither the metrics nor what they came to are read in a step."""
    state = Health()
    state.add([torch.empty((), device="meta")], torch.empty(1, device="meta"))
    state.add([torch.empty((), device="meta")], torch.empty(1, device="meta"))


@pytest.mark.parametrize(
    ("precision", "clips", "there", "missing"),
    [
        ("fp32", False, ["--clip_grad_norm 1", "--peak_lr"], ["--precision"]),
        ("fp32", True, ["--peak_lr"], ["--clip_grad_norm", "--precision"]),
        ("bf16", True, ["--peak_lr", "--precision fp32"], ["--clip_grad_norm"]),
        ("fp16", False, ["--clip_grad_norm 1", "--peak_lr", "--precision fp32"], []),
    ],
)
def test_advice(precision: str, clips: bool, there: list[str], missing: list[str]) -> None:
    state = Health()
    for step in range(20):
        assert state.complaint(precision, clips) == "", step
        state.add([torch.tensor(math.nan)], torch.zeros(()))
    text = state.complaint(precision, clips)
    assert "20 steps in a row" in text
    assert all(flag in text for flag in there)
    assert not any(flag in text for flag in missing)
