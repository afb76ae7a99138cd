"""recipes/finetune.py, killed with -9 anywhere: the same weights, the same best ones, the same rows."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.harness import Run, Warm
from PIL import Image
from safetensors.torch import load_file

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "finetune.py"
SMALL = ("--model", "test_resnet", "--image_size", "24", "--batch_size", "12")
OFTEN = ("--log_every", "3", "--save_every", "2steps")
FOUR = ("--epochs", "4", "--peak_lr", "0.1")
ALL = (
    *("--mixup", "0.2", "--cutmix", "1", "--ema", "0.9", "--class_weights", "balanced", "--augment", "strong"),
    *("--optimizer", "adamw", "--clip_grad_norm", "1"),
)
FILE = "model.safetensors"
FRESH = ("--weights", "none")
FROZEN = ("--weights", "RUN", "--freeze_epochs", "1")  # RUN: the path of `trained`
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "no workers": (("--workers", "0", "--class_weights", "resample"), 1),
    "3 workers, all": (("--workers", "3", *ALL), 1),
    "3 ranks, 1 worker, cache, all": (("--workers", "1", "--cache", "True", *ALL), 3),
    "frozen at first": (("--workers", "0", *FROZEN), 1),
    "3 ranks, frozen at first": (("--workers", "0", "--ema", "0.9", *FROZEN), 3),
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of striped pictures, unbalanced, of several sizes."""
    folder, drawn = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, counts in (("train", (20, 12, 6)), ("val", (4, 4, 4)), ("test", (4, 4, 4))):
        for label, count in enumerate(counts):
            for number in range(count):
                height, width = drawn.integers(30, 60, 2)
                stripes = np.sin(np.arange(width) / (2 + 2 * label) + drawn.uniform(0, 6)) > 0
                pixels = drawn.integers(0, 60, (height, width, 3)) + 120 * stripes[:, None]
                path = folder / split / f"类 {label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def trained(warm: Warm, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights others begin with."""
    flags = (*FRESH, "--data", str(photos), "--epochs", "1", "--workers", "0", "--seed", "7")
    run = Run(warm, tmp_path_factory.mktemp("trained"), *SMALL, *flags, recipe=RECIPE)
    run.finish()
    return run.path


@pytest.fixture
def finetune(warm: Warm, photos: Path, trained: Path, tmp_path: Path) -> Callable[..., Run]:
    numbers = iter(range(100))

    def make(*flags: str, ranks: int = 1) -> Run:
        shared = (*SMALL, *OFTEN, "--data", str(photos))
        flags = tuple(str(trained) if flag == "RUN" else flag for flag in flags)
        flags += () if "--weights" in flags else FRESH
        return Run(warm, tmp_path / f"run-{next(numbers)}", *shared, *flags, ranks=ranks, recipe=RECIPE)

    return make


def left(run: Run) -> dict[str, object]:
    """What must not depend on kills."""
    files = {
        f"{place.name}/{path.name}": path.read_bytes()
        for place in (run.path / "final", run.path / "best")
        for path in sorted(place.iterdir())
    }
    return {"rows": run.rows(), **files}


def kill_after(run: Run, step: int, delay_seconds: float = 0.0) -> bool:
    """Kill -9 so long after a checkpoint of `step` or later is there. False: it had ended."""
    job, limit = run.start(), time.monotonic() + 90
    while not job.over.is_set() and time.monotonic() < limit:
        if any(int(name[5:]) >= step for name in run.checkpoints() if name.startswith("step-")):
            time.sleep(delay_seconds)
            job.kill()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere(finetune: Callable[..., Run], kind: str) -> None:
    flags, ranks = KINDS[kind]
    clean = finetune(*FOUR, *flags, ranks=ranks)
    clean.finish()
    run, drawn = finetune(*FOUR, *flags, ranks=ranks), random.Random(kind)
    steps = sorted(drawn.sample(range(clean.status()["total_steps"] - 1), 3))
    kills = [kill_after(run, step, drawn.uniform(0, 0.05)) for step in steps]
    if run.status()["state"] != "finished":
        run.finish()
    assert any(kills)
    assert left(run) == left(clean)


def test_workers_cache_and_ranks_see_the_same(finetune: Callable[..., Run]) -> None:
    """Not how pictures are brought, but which, decides: the same bits with any number of workers, cached or not."""
    plain = finetune(*FOUR, "--workers", "0")
    plain.finish()
    for flags in (("--workers", "3"), ("--workers", "1", "--cache", "True")):
        other = finetune(*FOUR, *flags)
        other.finish()
        assert left(other) == left(plain)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_patience_ends_at_the_same_step_after_any_kill(finetune: Callable[..., Run], ranks: int) -> None:
    """Weights that never move are never better: it ends after two more evaluations, whoever was killed when."""
    flags = ("--peak_lr", "0", "--patience", "2", "--epochs", "9", "--workers", "0", "--metric", "accuracy")
    clean = finetune(*flags, ranks=ranks)
    clean.finish()
    evaluations = [row["step"] for row in clean.rows() if row["kind"] == "eval"]
    assert len(evaluations) == 3
    assert clean.status()["step"] == clean.status()["total_steps"] == evaluations[-1]
    run = finetune(*flags, ranks=ranks)
    for step in (evaluations[0], evaluations[1] + 1):
        kill_after(run, step)
    if run.status()["state"] != "finished":
        run.finish()
    assert left(run) == left(clean)


@pytest.mark.slow
def test_a_loss_that_never_was_a_number_ends_in_words(finetune: Callable[..., Run]) -> None:
    """There are no best weights then, and what is to be said is that the others are of no use either."""
    job = finetune("--metric", "loss", "--peak_lr", "1e18", "--epochs", "0.4", "--precision", "fp32").start()
    job.wait()
    assert job.codes == [76]
    assert "hold infinities or NaN after step 2" in job.text
    assert "Traceback" not in job.text


@pytest.mark.parametrize("freeze_epochs", ["0.5", "1"])
def test_that_only_the_head_learns_is_said(finetune: Callable[..., Run], trained: Path, freeze_epochs: str) -> None:
    run = finetune("--weights", "RUN", "--freeze_epochs", freeze_epochs, "--epochs", "1", "--workers", "0")
    run.finish()
    before, after = load_file(trained / "best" / FILE), load_file(run.path / "final" / FILE)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert (moved == {"fc.weight", "fc.bias"}) == (freeze_epochs == "1")
    assert ("Only the head will learn: --freeze_epochs 1 " in run.log()) == (freeze_epochs == "1")


def test_a_stop_while_workers_decode(finetune: Callable[..., Run]) -> None:
    run = finetune(*FOUR, "--workers", "2")
    job = run.start()
    limit = time.monotonic() + 60
    while not run.checkpoints() and time.monotonic() < limit:
        time.sleep(0.01)
    job.signal(signal.SIGTERM)
    job.wait()
    assert job.codes in ([75], [0]), job.text
    run.finish()


def test_the_last_row_is_of_the_best_weights(warm: Warm, photos: Path, tmp_path: Path) -> None:
    """With the same photos as val and as test, its figures are those that the best evaluation had, bit for bit."""
    for split, of in (("train", "train"), ("val", "test"), ("test", "test")):
        (tmp_path / "photos" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / split).symlink_to(photos / of)
    flags = ("--data", str(tmp_path / "photos"), "--workers", "0", "--metric", "accuracy", "--epochs", "4")
    run = Run(warm, tmp_path / "run", *SMALL, *FRESH, *OFTEN, *flags, "--peak_lr", "3", recipe=RECIPE)
    run.finish()
    evals, (test,) = ([row for row in run.rows() if row["kind"] == kind] for kind in ("eval", "test"))
    best = max(evals, key=lambda row: row["accuracy"])  # the first of those that are alike
    assert best["loss"] != evals[-1]["loss"], "the last is the best: this shows nothing"
    assert (test["accuracy"], test["loss"]) == (best["accuracy"], best["loss"])
