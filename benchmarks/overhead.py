"""What pitstop costs: a training step through it, against a bare PyTorch loop over the same resident batches.

    python benchmarks/overhead.py [--seconds 60]

Both loops run in one process and take turns, a block of steps each, so that a noisy machine hits both; printed are
medians over the blocks. The bare loop gets the same batches (order, augmentation), computes the same loss in the same
precision and steps the same optimizer; pitstop counts, seeds, records and looks for signals besides. With the null
model the bare loop has its batches ready made, so the difference is all that pitstop does on the host. Checkpoints
are timed by saves.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pitstop import augment, data, models, optim
from pitstop.accumulate import accumulate
from pitstop.config import RecipeConfig
from pitstop.machine import processor_name
from pitstop.session import Session

Step = Callable[[], None]


class Null(nn.Module):
    """A model that costs next to nothing, so that what is left is the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.weight.T.expand(images_BCHW.shape[0], 10)


def images(number: int, size: int) -> data.ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (number,), generator=generator)
    return data.ImageSet(pixels, labels, tuple("abcdefghij"), {"source": "noise"})


def loops(name: str, size: int, batch_size: int, stack: Path) -> Iterator[tuple[Step, Step, Session]]:
    """One step of pitstop and one bare step, on models of their own."""
    config = RecipeConfig(
        name=name, epochs=1e9, batch_size=batch_size, runs_dir=stack, tracker="none", save_every="1d", log_every=50
    )
    with Session.open(config, __file__) as session:
        train, _ = session.own(images(2000, size), images(20, size))
        mean, std = data.mean_and_std(train.images_NCHW)
        change = augment.Standard(mean, std, size=size, seed=0, flip=True, shift=4, cutout=size // 3)
        plain = partial(augment.normalise, mean=mean, std=std)
        batches = data.Batches(
            train, batch_size, seed=0, augment=(lambda i, p: plain(i)) if name == "null" else change, **session.slice
        )

        def build() -> tuple[nn.Module, torch.optim.Optimizer]:
            look = {"classes": train.classes, "channels": 3, "image_size": size, "stem": "small", "seed": 0}
            model = Null() if name == "null" else models.create(name, **look)
            optimizer = optim.sgd(model, weight_decay=5e-4)
            optim.set_lr(optimizer, 0.01)
            return model, optimizer

        model, optimizer = session.prepare(*build())
        bare_model, bare_optimizer = build()
        criterion = nn.CrossEntropyLoss(reduction="sum")
        bare_criterion = nn.CrossEntropyLoss()
        session.restore(batches)
        endless = batches.between(session.step, session.total_steps)
        ready = [batches.at(step) for step in range(4)] if name == "null" else None

        def ours() -> None:
            batch = next(endless)
            optim.set_lr(optimizer, optim.learning_rate(config, session.step, session.total_steps, 1000.0))
            figures = accumulate(model, batch, criterion, precision=session.precision, memory=session.memory)
            session.precision.update(model, optimizer)
            session.commit(figures)

        def bare() -> None:
            batch = ready[session.step % 4] if ready else batches.at(session.step)
            images_BCHW, labels_B = batch.micro_batches[0]
            with session.precision.autocast():
                loss = bare_criterion(bare_model(images_BCHW), labels_B)
            torch.autograd.backward(loss)
            bare_optimizer.step()
            bare_optimizer.zero_grad()

        yield ours, bare, session


def timed(step: Step, steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begun) / steps


def compare(name: str, size: int, batch_size: int, seconds: float, folder: Path) -> None:
    for ours, bare, session in loops(name, size, batch_size, folder):
        once = max(timed(ours, 3), timed(bare, 3))
        steps = max(1, min(200, int(seconds / 40 / once)))
        pairs: list[tuple[float, float]] = []
        begun = time.perf_counter()
        while len(pairs) < 5 or time.perf_counter() - begun < seconds:
            first = len(pairs) % 2  # who begins takes turns too
            times = [timed(step, steps) for step in ((bare, ours) if first else (ours, bare))]
            pairs.append((times[first], times[1 - first]))
        differences = [1e6 * (mine - theirs) for mine, theirs in pairs]
        ratios = [mine / theirs for mine, theirs in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:12} {size:2} px  batch {batch_size:3}  {session.precision.name}  "
            f"bare {1e3 * statistics.median(t for _, t in pairs):9.3f} ms/step  "
            f"pitstop {1e3 * statistics.median(m for m, _ in pairs):9.3f} ms/step  "
            f"difference {statistics.median(differences):8.0f} us  "
            f"ratio {statistics.median(ratios):.4f} (quartiles {low:.4f} {high:.4f}, n={len(pairs)} x {steps} steps)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each comparison")
    seconds = parser.parse_args().seconds
    print(f"{processor_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, size, batch_size in (("null", 8, 64), ("test_resnet", 32, 64), ("resnet18", 32, 64)):
            compare(name, size, batch_size, seconds, Path(folder))


if __name__ == "__main__":
    main()
