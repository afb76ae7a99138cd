"""What photos cost: pitstop's loader against torchvision's reference pipeline, over the same JPEGs, in the same run.

    python benchmarks/loader.py [--images 1280] [--repetitions 7] [--size 224]

The reference is ImageFolder with PIL, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize, in a
DataLoader with the number of workers that is best here, found by trying. Ours crops and mirrors as recipes/finetune.py
does without further augmentation, up to the uint8 batch on the device, where it is normalised; with "normalised here"
these cores do that too, as where there is no GPU. Its number of workers is found likewise for each way. Nothing trains.

One epoch is measured at a time, in turns. Time is from the second batch on (the first waits for the workers to start);
"CPU" is that of all processes over the whole epoch, which other programs on the machine disturb less. Printed are
medians and quartiles over the repetitions; ratios are of the epochs of one turn.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pitstop import augment, data
from pitstop.crops import RandomCrop
from pitstop.machine import processor_name

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, DIFFERENT = 64, 256
Epoch = Callable[[int], Iterator[Tensor]]  # workers -> batches


def photo(generator: np.random.Generator) -> Image.Image:
    """500x375: noise at several scales, weighed so that a JPEG of it is as large as one of a photo."""
    pixels_HWC = np.full((375, 500, 3), 127.0)
    for cells, weight in ((4, 60), (16, 40), (64, 25), (200, 14), (500, 7)):
        noise = (generator.normal(0, 1, (max(2, 375 * cells // 500), cells, 3)).clip(-2, 2) * 40 + 127).astype(np.uint8)
        large = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        pixels_HWC += (np.asarray(large).astype(float) - 127) * weight / 50
    return Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))


def make(folder: Path, number: int) -> float:
    """`number` JPEGs of quality 90 in ten classes, of which 256 differ; their mean size in kB."""
    generator = np.random.default_rng(0)
    sizes = []
    for i in range(number):
        file = folder / "train" / f"class {i % 10}" / f"{i:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i < DIFFERENT:
            photo(generator).save(file, quality=90)
        else:
            os.link(folder / "train" / f"class {i % DIFFERENT % 10}" / f"{i % DIFFERENT:05}.jpg", file)
        sizes.append(file.stat().st_size)
    for name in sorted({path.name for path in (folder / "train").iterdir()}):
        (folder / "val" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "val" / name / "0.jpg")
    return statistics.mean(sizes) / 1e3


def reference(folder: Path, size: int, workers: int) -> Iterator[Tensor]:
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = datasets.ImageFolder(str(folder / "train"), change)
    for images_BCHW, _ in DataLoader(images, BATCH, shuffle=True, num_workers=workers):
        yield images_BCHW


def ours(photos: data.Photos, size: int, normalised: bool, workers: int) -> Iterator[Tensor]:
    train = replace(photos.train, workers=workers)
    normalise = partial(augment.normalise, mean=MEAN, std=STD)
    crop = RandomCrop(size, 0, augment="none")
    batches = data.PhotoBatches(
        train, BATCH, seed=0, crop=crop, augment=lambda images, _: normalise(images) if normalised else images
    )
    for batch in batches.between(0, len(train) // BATCH):
        yield batch.images_NCHW


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def milliseconds(batches: Iterator[Tensor]) -> tuple[float, float]:
    """Of wall clock and of CPU, for each image."""
    cpu = cpu_seconds()
    first = len(next(batches))
    begun, number = time.perf_counter(), 0
    for images_BCHW in batches:
        number += len(images_BCHW)
    wall = time.perf_counter() - begun
    return 1e3 * wall / number, 1e3 * (cpu_seconds() - cpu) / (first + number)


def best_workers(epoch: Epoch, cores: int) -> int:
    times = {workers: min(milliseconds(epoch(workers)) for _ in range(2)) for workers in range(cores + 2)}
    return min(times, key=times.__getitem__)


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.3f} ({low:.3f} .. {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--size", type=int, default=224, help="side of a crop, in pixels")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, which is tried too
    cores, size = len(os.sched_getaffinity(0)), arguments.size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        os.environ["PITSTOP_DATA_DIR"] = str(Path(name) / "kept")
        kilobytes = make(folder, arguments.images)
        print(
            f"{processor_name()}, {cores} cores, torch {torch.__version__}: {arguments.images} JPEGs of 500x375, "
            f"{kilobytes:.0f} kB each; crops of {size} px, batches of {BATCH}"
        )
        load = partial(data.load_photos, str(folder), image_size=size, seed=0, check=False, may_write=True, say=print)
        plain, cached = load(cache=False), load(cache=True)
        ways: dict[str, Epoch] = {
            "torchvision's reference": partial(reference, folder, size),
            "pitstop, first epoch": partial(ours, plain, size, False),
            "pitstop, from the cache": partial(ours, cached, size, False),
            "first epoch, normalised here": partial(ours, plain, size, True),
            "from the cache, normalised here": partial(ours, cached, size, True),
        }
        workers = {way: best_workers(epoch, cores) for way, epoch in ways.items()}
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(arguments.repetitions):
            for way in list(ways)[:: 1 if number % 2 else -1]:  # who begins takes turns too
                times[way].append(milliseconds(ways[way](workers[way])))
    print(f"medians (quartiles), n = {arguments.repetitions}")
    for kind, name in enumerate(("wall clock", "CPU")):
        theirs = [pair[kind] for pair in times["torchvision's reference"]]
        for way, pairs in times.items():
            mine = [pair[kind] for pair in pairs]
            ratios = [their / my for their, my in zip(theirs, mine, strict=True)]
            print(
                f"{name:10}  {way:31}  {workers[way]} workers  {quartiles(mine)} ms/image  "
                f"{quartiles(ratios)} times as fast"
            )


if __name__ == "__main__":
    main()
