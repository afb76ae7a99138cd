"""What `pitstop predict` gains over a loop that takes one image after the other.

    python benchmarks/predict.py [--images 1000] [--rounds 3]

Synthetic JPEGs of 500x375, resnet18 at 224 with timm's own stem. The loop is what one writes first: Pillow, then
torchvision's Resize, CenterCrop, ToTensor and Normalize, a batch of one, no gradients, in fp32. Ours is the whole
command after its imports, with the loading of the weights and the writing of a CSV: in fp32, and by --precision auto.
They take turns; printed are medians over the rounds, and the median of the ratios of a round with its quartiles.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from pitstop import models
from pitstop.checkpoint import write_final
from pitstop.machine import processor_name
from pitstop.predict.classify import classify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, LOAD_SIZE = 224, 256
WIDTH, HEIGHT = 500, 375


def photos(folder: Path, number: int) -> list[Path]:
    """Smooth colours with some noise: JPEGs of about 50 kB, as photographs of that size have."""
    chance = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + chance.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:05}.jpg", quality=85)
    return sorted(folder.iterdir())


def loop(weights: Path, paths: list[Path]) -> list[int]:
    """The likeliest class of each image, one after the other."""
    model = models.load(weights)[0].to(memory_format=torch.contiguous_format)
    prepare = transforms.Compose(
        [
            transforms.Resize(LOAD_SIZE),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    found = []
    with torch.no_grad():
        for path in paths:
            with Image.open(path) as image:
                images_1CHW = prepare(image.convert("RGB"))[None].to(device)
            found.append(int(model(images_1CHW).softmax(1).argmax()))
    return found


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def described(seconds: dict[str, list[float]], number: int) -> str:
    """A line for each way: images a second, and how often the loop's speed."""
    lines = []
    for name, all_seconds in seconds.items():
        ratios = [one / other for one, other in zip(seconds["loop"], all_seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        speed = number / statistics.median(all_seconds)
        lines.append(f"{name:<14} {speed:7.1f} images/s, {middle:.2f} times the loop ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


def main(number: int, rounds: int) -> None:
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        look = {"classes": tuple("abcdefghij"), "image_size": SIZE, "stem": "imagenet"}
        model = models.create("resnet18", channels=3, seed=0, **look)
        weights = root / "run" / "final"
        weights.parent.mkdir()
        write_final(
            weights, model.state_dict(), models.card("resnet18", mean=MEAN, std=STD, load_size=LOAD_SIZE, **look)
        )
        folder = root / "photos"
        folder.mkdir()
        paths = photos(folder, number)
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{number:,} JPEGs of {WIDTH}x{HEIGHT}, {megabytes:.0f} MB; n = {rounds} rounds")

        def ours(precision: str) -> None:
            output = root / "out.csv"
            classify(weights, [str(folder)], top=1, format="csv", output=output, precision=precision)
            output.unlink()

        ways: dict[str, Callable[[], object]] = {
            "loop": lambda: loop(weights, paths),
            "predict, fp32": lambda: ours("fp32"),
            "predict, auto": lambda: ours("auto"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            order = list(ways) if turn % 2 == 0 else list(reversed(ways))
            for name in order:
                seconds[name].append(timed(ways[name]))
        print(described(seconds, number))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.images, arguments.rounds)
