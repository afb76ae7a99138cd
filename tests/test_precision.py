"""Precision: what is chosen for which machine, and the scaler's logic on a CPU with float16 autocast."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pitstop import precision
from pitstop.errors import UserError
from pitstop.optim import zero_momentum
from pitstop.precision import EMULATE_FP16, Precision, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
READ = precision._cpu_has_bf16  # the real one, before a test replaces it


def gpu(patch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: name)


@pytest.mark.parametrize(
    ("capability", "wanted", "expected"),
    [
        ((7, 5), "auto", "fp16"),
        ((7, 0), "auto", "fp16"),
        ((8, 0), "auto", "bf16"),
        ((8, 6), "auto", "bf16"),
        ((9, 0), "auto", "bf16"),
        ((12, 0), "auto", "bf16"),
        ((7, 5), "fp16", "fp16"),
        ((8, 0), "fp16", "fp16"),
        ((8, 0), "bf16", "bf16"),
        ((7, 5), "fp32", "fp32"),
        ((9, 0), "fp32", "fp32"),
    ],
)
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], wanted: str, expected: str) -> None:
    gpu(monkeypatch, capability, "some GPU")
    assert resolve(wanted, GPU) == expected


def test_bf16_on_a_gpu_that_only_emulates_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (7, 5), "Tesla T4")
    with pytest.raises(UserError, match=r"--precision bf16: Tesla T4 has no bf16.*--precision fp16"):
        resolve("bf16", GPU)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx2 avx512f avx512_bf16 amx_tile", True),
        ("fpu amx_bf16 amx_tile amx_int8", True),
        ("fpu sse2 avx2 avx512f avx512_vnni", False),
        ("fpu avx512_bf16x", False),
    ],
)
def test_on_a_cpu_by_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Xeon\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n\n")
    assert READ(cpuinfo) is expected
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: READ(cpuinfo))
    assert resolve("auto", CPU) == ("bf16" if expected else "fp32")
    assert (resolve("bf16", CPU), resolve("fp32", CPU)) == ("bf16", "fp32")


def test_no_cpuinfo_is_fp32(tmp_path: Path) -> None:
    assert READ(tmp_path / "none") is False


def test_fp16_on_a_cpu_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EMULATE_FP16, raising=False)
    with pytest.raises(UserError, match=r"--precision fp16 needs a GPU.*--precision bf16 or fp32"):
        resolve("fp16", CPU)
    monkeypatch.setenv(EMULATE_FP16, "1")
    assert resolve("fp16", CPU) == "fp16"


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", None)])
def test_autocast_computes_in_what_it_says(name: str, dtype: torch.dtype | None) -> None:
    with Precision(name, CPU).autocast():
        assert nn.Linear(4, 4)(torch.ones(2, 4)).dtype == (dtype or torch.float32)


class Job:
    """A small model whose gradients are known: the gradient of the weight is the mean of the inputs."""

    def __init__(
        self, name: str = "fp16", *, scale: float = 16.0, interval: int = 2000, lr: float = 0.5, logs: bool = False
    ) -> None:
        self.model = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.precision = Precision(name, CPU, log_gradients=logs)
        if name == "fp16":
            self.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)

    def step(self, value: float = 1.0, clip: float = 0.0) -> None:
        with self.precision.autocast():
            loss = self.model(torch.full((4, 3), value)).float().mean()
        self.precision.backward(loss)
        self.precision.update(self.model, self.optimizer, clip_grad_norm=clip)

    @property
    def weights(self) -> list[float]:
        return self.model.weight.detach().flatten().tolist()

    @property
    def scale(self) -> float:
        return self.precision.scaler.get_scale()


def test_update_equals_one_without_a_scale() -> None:
    job = Job()
    job.step()
    assert job.weights == [0.5, 0.5, 0.5]
    assert job.model.weight.grad is None


def test_an_overflow_skips_the_update_and_halves_the_scale() -> None:
    """float16 ends at 65,504: a gradient of 2 times a scale of 2**15 does not fit."""
    job = Job(scale=2.0**15)
    job.step(1.0)
    weights, momentum = job.weights, job.optimizer.state[job.model.weight]["momentum_buffer"].clone()
    assert weights == [0.5, 0.5, 0.5]
    job.step(float("inf"))
    assert job.weights == weights
    assert torch.equal(job.optimizer.state[job.model.weight]["momentum_buffer"], momentum)
    assert job.scale == 2.0**14
    assert job.model.weight.grad is None, "nothing of the bad gradient is left for the next step"
    job.step(1.0)
    assert job.weights != weights


def test_a_real_overflow_of_float16() -> None:
    """float16 ends at 65,504: two layers of weights 32 and a scale of 2**15 overflow on the way back; 2**9 does not."""
    job = Job(scale=2.0**15, lr=0.01)
    job.model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))  # type: ignore[assignment]
    for p in job.model.parameters():
        nn.init.constant_(p, 32.0)
    job.optimizer = torch.optim.SGD(job.model.parameters(), lr=0.01)
    scales = []
    before = [p.clone() for p in job.model.parameters()]
    while all(torch.equal(p, b) for p, b in zip(job.model.parameters(), before, strict=True)):
        scales.append(job.scale)
        job.step(1.0)
        assert len(scales) < 20
    assert len(scales) > 2, "some updates were skipped"
    assert scales == [2.0**15 / 2**i for i in range(len(scales))]
    assert all(p.isfinite().all() for p in job.model.parameters())


def test_the_scale_grows() -> None:
    job = Job(scale=4.0, interval=3)
    scales = []
    for _ in range(7):
        job.step()
        scales.append(job.scale)
    assert scales == [4, 4, 8, 8, 8, 16, 16]


def test_a_resume_in_the_middle_of_growth_equals_no_interruption() -> None:
    values = [1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0, 1.0, float("inf"), 1.0]
    through = Job(scale=64.0, interval=2)
    seen: list[tuple[Any, ...]] = []
    for value in values:
        through.step(value)
        seen.append((through.weights, through.scale))
    assert len({scale for _, scale in seen}) >= 3, "it went both ways"
    for stop in range(len(values)):
        first, second = Job(scale=64.0, interval=2), Job(scale=1.0, interval=3)
        for value in values[:stop]:
            first.step(value)
        state = json.loads(json.dumps(first.precision.state_dict()))  # through a checkpoint's JSON
        second.precision.load_state_dict(state)
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        for value, expected in zip(values[stop:], seen[stop:], strict=True):
            second.step(value)
            assert (second.weights, second.scale) == expected, stop


def test_another_precision_than_before_begins_afresh() -> None:
    fp16, fp32 = Job("fp16"), Job("fp32")
    fp32.precision.load_state_dict(fp16.precision.state_dict())
    assert fp32.precision.state_dict() == {}
    fp16.precision.load_state_dict(fp32.precision.state_dict())
    assert fp16.scale == 16.0


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_clipping_is_of_the_true_gradient(name: str) -> None:
    """The gradient is (1, 1, 1), of norm sqrt(3), whatever the scale; lr 1, so that the update is what was applied."""
    for clip, norm in ((0.1, 0.1), (1.0, 1.0), (100.0, math.sqrt(3)), (0.0, math.sqrt(3))):
        job = Job(name, scale=1024.0, lr=1.0)
        job.step(1.0, clip=clip)
        applied: Tensor = 1 - job.model.weight.detach()
        assert applied.norm().item() == pytest.approx(norm, rel=1e-3)


def test_an_overflow_is_skipped_with_clipping_too() -> None:
    job = Job()
    job.step(float("inf"), clip=1.0)
    assert (job.weights, job.scale) == ([1.0, 1.0, 1.0], 8.0)


def test_the_scale_is_one_without_fp16() -> None:
    for name in ("bf16", "fp32"):
        assert Precision(name, CPU).scaler.get_scale() == 1.0
        assert Precision(name, CPU).state_dict() == {}
    assert Precision("fp16", CPU).scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_an_update_that_is_not_finite_is_not_applied(name: str) -> None:
    """In no precision; and the scale, which has nothing to do with it, stays 1 for ever."""
    job, whole = Job(name), Job(name)
    job.step()
    assert job.precision.overflow.item() == 0
    for value in (math.inf, math.nan, -math.inf):
        job.step(value)
        assert job.precision.overflow.item() > 0
    assert job.scale == 1.0
    job.step()
    assert job.precision.overflow.item() == 0
    for _ in range(2):
        whole.step()
    assert job.weights == whole.weights


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("clip", [0.0, 0.25, 100.0])
def test_the_logged_norm_is_that_of_the_true_gradient(name: str, clip: float) -> None:
    """The gradient is `value` three times, whatever the scale and whatever is clipped."""
    job = Job(name, scale=1024.0, logs=True)
    assert job.precision.figures == {}
    for value in (1.0, 3.0, 0.5):
        before = job.scale
        job.step(value, clip=clip)
        figures = {key: figure.item() for key, figure in job.precision.figures.items()}
        expected = {"grad_norm": pytest.approx(value * math.sqrt(3), rel=1e-3)}
        assert figures == expected | ({"loss_scale": before} if name == "fp16" else {})


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_an_overflow_has_no_finite_norm_and_its_own_scale(clip: float) -> None:
    job = Job(scale=64.0, logs=True)
    job.step(float("inf"), clip=clip)
    assert not job.precision.figures["grad_norm"].isfinite()
    assert (job.precision.figures["loss_scale"].item(), job.scale) == (64.0, 32.0)
    job.step(1.0, clip=clip)
    assert job.precision.figures["grad_norm"].item() == pytest.approx(math.sqrt(3), rel=1e-3)
    assert job.precision.figures["loss_scale"].item() == 32.0


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("fused", [False, True])
def test_who_logs_changes_no_bit(name: str, clip: float, fused: bool) -> None:
    """A scale that is no power of two, growth, overflows: the weights and the scales are those of who does not log."""
    seen = []
    for logs in (False, True):
        job = Job(name, scale=1000.1, interval=2, logs=logs, lr=0.01)
        job.optimizer = torch.optim.SGD(job.model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        zero_momentum(job.optimizer)
        seen.append([])
        for value in (1.1, 0.7, math.inf, 0.3, 1.9, math.nan, 0.13, 2.3, 1e-3, 0.77):
            job.step(value, clip=clip)
            momentum = job.optimizer.state[job.model.weight]["momentum_buffer"].flatten().tolist()
            seen[-1].append((job.weights, momentum, job.scale))
        assert bool(job.precision.figures) == logs
    assert seen[0] == seen[1]


def test_who_does_not_log_computes_nothing() -> None:
    job = Job()
    job.step()
    assert job.precision.figures == {}
