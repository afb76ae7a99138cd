"""Head first, then all: what is frozen does not move by a bit, and a restart changes none, with 1 and with 3 ranks."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import results
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pitstop import checkpoint, models, optim, state
from pitstop.accumulate import accumulate
from pitstop.checkpoint.image import Image
from pitstop.data.stream import Batch, Stream
from pitstop.precision import Precision

BORDER, STEPS = 2, 5
STARTS = [BORDER - 1, BORDER, BORDER + 1]  # of an attempt that continues
LOOK: dict[str, Any] = {"classes": ("a", "b", "c"), "channels": 3, "image_size": 8, "stem": "small"}
Bits = dict[str, np.ndarray]


class Job:
    """timm's `test_resnet`, frozen but for its head in the first steps, in DDP if there are several ranks."""

    def __init__(self, kind: str, precision: str, rank: int = 0, world: int = 1, weight_decay: float = 0.1) -> None:
        self.bare = models.create("test_resnet", seed=0, **LOOK)
        for module in self.bare.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm begins with some at 0, behind which nothing learns at first
        make = {"sgd": optim.sgd, "adamw": optim.adamw}[kind]
        self.optimizer = make(self.bare, weight_decay=weight_decay, backbone_lr=0.5)
        optim.zero_momentum(self.optimizer)
        self.precision = Precision(precision, torch.device("cpu"))
        if precision == "fp16":  # grows into an overflow, again and again
            self.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=1)
        self.model: nn.Module = self.bare
        if world > 1:  # as session.place wraps it
            flags = {"find_unused_parameters": True, "gradient_as_bucket_view": True, "broadcast_buffers": False}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self.model = DistributedDataParallel(self.bare, **flags)
        self.stream = Stream(60, 12, seed=0, rank=rank, world=world)
        self.skipped = 0

    def batch(self, step: int) -> Batch:
        positions_N, indices_N = self.stream.positions(step)
        images = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in indices_N.tolist()]
        images_NCHW = torch.stack(images).to(memory_format=torch.channels_last)
        return Batch(0, step, positions_N, indices_N, 12, images_NCHW, indices_N % 3, micro_batch=2)

    def step(self, step: int, border: int = BORDER) -> None:
        if step % 2:
            self.bare.eval().train()  # as an evaluation ends
        optim.freeze(self.model, step < border)
        optim.set_lr(self.optimizer, 0.02 * (step + 1))
        criterion = nn.CrossEntropyLoss(reduction="sum")
        accumulate(self.model, self.batch(step), criterion, precision=self.precision)
        self.precision.update(self.model, self.optimizer, clip_grad_norm=1.0)
        self.skipped += int(self.precision.overflow.item() > 0)

    def tensors(self) -> dict[str, Tensor]:
        """As a file gives them back: contiguous."""
        live = state.collect(self.bare, self.optimizer)
        return {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in live.items()}

    def bits(self) -> Bits:
        """Without the statistics of batch normalisation, which differ from rank to rank."""
        named = self.tensors().items()
        return {n: t.numpy() for n, t in named if "running" not in n and "num_batches" not in n}


def different(a: Bits, b: Bits) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if a[name].tobytes() != b[name].tobytes()]


def through_and_again(rank: int, world: int, kind: str, precision: str) -> dict[str, Any]:
    """A run in one go; and others that begin in the middle with what rank 0 had, each in a DDP of its own."""
    job = Job(kind, precision, rank, world)
    saved = []
    for step in range(STEPS):
        saved.append((job.tensors(), job.precision.state_dict()))
        job.step(step)
    begins = job.bits()
    changed = {}
    for start in STARTS:
        tensors, scale = saved[start]
        again = Job(kind, precision, rank, world)
        if world > 1:
            tensors, scale = state.broadcast(tensors, scale, torch.device("cpu"))
        state.put_back(again.bare, again.optimizer, tensors)
        again.precision.load_state_dict(scale)
        for step in range(start, STEPS):
            again.step(step)
        changed[start] = different(again.bits(), begins)
    return {"bits": begins, "changed": changed, "skipped": job.skipped}


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "precision"), [("sgd", "fp32"), ("adamw", "fp32"), slow("sgd", "fp16"), slow("adamw", "fp16")]
)
def test_a_restart_before_at_and_after_the_border_changes_no_bit(kind: str, precision: str) -> None:
    found = through_and_again(0, 1, kind, precision)
    assert found["changed"] == {start: [] for start in STARTS}
    assert (found["skipped"] > 0) == (precision == "fp16")
    assert found["skipped"] < STEPS


def two_ways(rank: int, world: int) -> dict[str, Any]:
    ways = (("sgd", "fp32"), ("adamw", "fp16"))
    return {precision: through_and_again(rank, world, kind, precision) for kind, precision in ways}


@pytest.mark.slow
def test_three_ranks() -> None:
    """All ranks end alike, and alike after a restart."""
    ranks = results(3, two_ways)
    for rank in ranks:
        for precision, found in rank.items():
            assert found["changed"] == {start: [] for start in STARTS}
            assert different(found["bits"], ranks[0][precision]["bits"]) == []
            assert (found["skipped"] > 0) == (precision == "fp16")


def frozen_bits(rank: int, world: int) -> dict[str, Bits]:
    jobs = {kind: Job(kind, "fp32", rank, world) for kind in ("sgd", "adamw")}
    for job in jobs.values():
        for step in range(BORDER):
            job.step(step)
    return {kind: job.bits() for kind, job in jobs.items()}


@pytest.mark.slow
def test_three_ranks_learn_a_head_as_one_process_does() -> None:
    """A frozen norm reads the same statistics everywhere, so the loss of a sample is its own: no more than the order of
    the sums differs."""
    alone, three = frozen_bits(0, 1), results(3, frozen_bits)[0]
    for kind in alone:
        for name in alone[kind]:
            np.testing.assert_allclose(three[kind][name], alone[kind][name], rtol=1e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_does_not_move(kind: str) -> None:
    """Not by decay, nor by momentum from before, nor the statistics; and all of it moves when it is free."""
    job = Job(kind, "fp32")
    first = job.tensors()
    for step in range(BORDER):
        job.step(step)
    frozen = job.tensors()
    moved = {name for name in first if not torch.equal(first[name], frozen[name])}
    assert {name.split("/")[1].split(".")[0] for name in moved} == {"fc"}
    assert {name for name in moved if name.startswith("model/")} == {"model/fc.weight", "model/fc.bias"}
    job.step(BORDER)
    still = {name for name, tensor in job.tensors().items() if torch.equal(tensor, frozen[name])}
    assert still == set(), "now everything learns"
    momentum = job.tensors()
    job.step(BORDER + 1, border=STEPS)
    again = {name for name, t in job.tensors().items() if not torch.equal(t, momentum[name])}
    assert {name.split("/")[1].split(".")[0] for name in again} == {"fc"}, "what had momentum stays where it is"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_while_frozen_has_the_state_of_all(kind: str, tmp_path: Path) -> None:
    """Laid out before the first step, and still as laid out after the border: no state comes into being halfway."""
    job = Job(kind, "fp32")
    live = state.collect(job.bare, job.optimizer)
    kept = {"sgd": 1, "adamw": 3}[kind]
    assert sum(name.startswith("optimizer/") for name in live) == kept * len(list(job.bare.parameters()))
    image = Image(live)
    for step in range(STEPS):
        job.step(step)
        assert image.fits(state.collect(job.bare, job.optimizer)), step
        if step == BORDER - 1:
            assert job.bare.get_parameter("layer1.0.conv1.weight").grad is None
            writer = checkpoint.Writer(tmp_path, keep=1)
            writer.begin(step, state.collect(job.bare, job.optimizer), set(), {}, lambda: None)
            saved, wanted = writer.take(wait=True), job.tensors()
            assert saved is not None
            assert saved.error is None
    found = checkpoint.newest(tmp_path, complain=print)
    assert found is not None
    assert {n: t.numpy().tobytes() for n, t in found.tensors.items()} == {
        n: t.numpy().tobytes() for n, t in wanted.items()
    }


def test_a_head_of_several_parts_and_dropout() -> None:
    """Only norms are put into evaluation mode; a model may name several classifiers (timm's distilled ViT)."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
            self.heads = nn.ModuleList([nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), nn.Linear(4, 2)])

        def get_classifier(self) -> tuple[nn.Module, ...]:
            return tuple(self.heads)

    model = Two()
    optim.freeze(model, True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("heads")
    }
    assert {n for n, m in model.named_modules() if not m.training} == {"body.1"}
    optim.freeze(model, False)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
