"""Is transfer real, and is balance? Short trainings of recipes/mnist.py and recipes/finetune.py, side by side.

    python benchmarks/transfer.py [--fashion DIR] [--seeds 3] [--epochs 3]

transfer: resnet18 trained on Fashion-MNIST by recipes/mnist.py is given as --weights to recipes/finetune.py on
scikit-learn's digits, saved as folders of PNG; against --weights none at equal steps and flags.
balance: ten classes of Fashion-MNIST in a long tail from 500 images to 10 (50 to 1), tested on 100 of each;
--class_weights balanced against none, macro recall.

Nothing is downloaded: DIR holds Fashion-MNIST's IDX files (Debian: apt-get install dataset-fashion-mnist).
"""

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from sklearn.datasets import load_digits

from pitstop.flags import parse

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TAIL = [round(500 * 50 ** (-place / 9)) for place in range(10)]  # 500 .. 10


class Config(BaseModel):
    """Two experiments on small images, each with several seeds."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    fashion: Path = Path("/usr/share/datasets/fashion-mnist")
    """folder with the four IDX files of Fashion-MNIST"""
    seeds: int = Field(3, ge=2)
    """trainings of each kind"""
    epochs: float = Field(3, gt=0)
    """of each training"""
    source_epochs: float = Field(0.3, gt=0)
    """of the training on Fashion-MNIST whose weights are taken over"""


def idx(folder: Path, name: str, header_bytes: int) -> np.ndarray:
    """The bytes of an IDX file, gz or not, without its header."""
    found = next(folder.rglob(f"{name}*"))
    data = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    return np.frombuffer(data, np.uint8, offset=header_bytes)


def save(images_NHW: np.ndarray, labels_N: np.ndarray, folder: Path) -> None:
    for number, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        path = folder / f"class-{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_HW).save(path)


def digits(folder: Path) -> None:
    """The last 360 are the test set, as in recipes/digits.py; enlarged to 32x32."""
    images_NHW, labels_N = load_digits(return_X_y=True)
    large = np.stack(
        [
            np.asarray(Image.fromarray((image * 255 / 16).astype(np.uint8).reshape(8, 8)).resize((32, 32)))
            for image in images_NHW
        ]
    )
    save(large[:-360], labels_N[:-360], folder / "train")
    save(large[-360:], labels_N[-360:], folder / "test")


def long_tail(fashion: Path, folder: Path) -> None:
    for split, prefix, counts in (("train", "train", TAIL), ("test", "t10k", [100] * 10)):
        labels_N = idx(fashion, f"{prefix}-labels", 8)
        images_NHW = idx(fashion, f"{prefix}-images", 16).reshape(-1, 28, 28)
        rows = np.concatenate([np.flatnonzero(labels_N == label)[:count] for label, count in enumerate(counts)])
        save(images_NHW[rows], labels_N[rows], folder / split)


def train(recipe: str, runs: Path, name: str, *flags: object) -> dict[str, float]:
    """The result of a run of a recipe, in a process of its own."""
    argv = [sys.executable, str(RECIPES / f"{recipe}.py"), "--runs_dir", str(runs), "--name", name, "--tracker", "none"]
    subprocess.run([*argv, *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
    return json.loads((runs / name / "status.json").read_text())["result"]


def compare(title: str, figure: str, results: dict[str, list[float]]) -> str:
    lines = [title]
    for name, values in results.items():
        mean, spread = statistics.fmean(values), statistics.stdev(values)
        each = " ".join(f"{100 * value:.2f}" for value in values)
        lines.append(f"  {name:<28}{figure} {100 * mean:6.2f} %, standard deviation {100 * spread:.2f} ({each})")
    return "\n".join(lines)


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        digits(folder / "digits")
        long_tail(config.fashion, folder / "tail")
        runs = folder / "runs"
        train("mnist", runs, "fashion", "--data", config.fashion, "--epochs", config.source_epochs)
        shared = ["--epochs", config.epochs, "--image_size", 32, "--augment", "none", "--workers", 0]
        shared += ["--batch_size", 64, "--eval_every", 0, "--report", False]
        fresh = [*shared, "--peak_lr", 0.1, "--check_data", False]
        sources = {"fashion": runs / "fashion" / "final", "none": "none"}
        results: dict[str, list[float]] = {name: [] for name in sources}
        balance: dict[str, list[float]] = {f"--class_weights {how}": [] for how in ("balanced", "none")}
        for seed in range(config.seeds):
            for name, source in sources.items():
                own = ["--data", folder / "digits", "--weights", source, "--freeze_epochs", 0, "--backbone_lr", 1]
                run = train("finetune", runs, f"digits-{name}-{seed}", *fresh, *own, "--seed", seed)
                results[name].append(run["accuracy"])
            for how in ("balanced", "none"):
                own = ["--data", folder / "tail", "--weights", "none", "--class_weights", how]
                run = train("finetune", runs, f"tail-{how}-{seed}", *fresh, *own, "--seed", seed)
                balance[f"--class_weights {how}"].append(run["macro_recall"])
        results = {f"--weights {name}": values for name, values in results.items()}
        print(compare(f"transfer to digits, {config.epochs:g} epochs each", "accuracy", results))
        print(compare(f"a long tail of 50 to 1, {config.epochs:g} epochs each", "macro recall", balance))


if __name__ == "__main__":
    main(parse(Config))
