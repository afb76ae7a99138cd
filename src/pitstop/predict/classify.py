"""From the bytes of image files to probabilities: decoded by threads ahead of the model, which sees whole batches."""

import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pitstop import augment, models, precision
from pitstop.data import decode as decoding
from pitstop.errors import FAILED, FINISHED, PERSON_DECIDES, UserError
from pitstop.files import read_json
from pitstop.predict.inputs import Picture, find, shown
from pitstop.predict.output import Csv, Form, Guesses, Json, Table, Write, destination

BATCH_PIXELS = 64 * 224**2  # images at once: 64 of 224x224, more of small ones
MOST_AT_ONCE = 256
BATCHES_AHEAD = 2
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim")  # what phones write, and Pillow does not read

Outcome = tuple[Picture, Tensor | str]  # uint8 [C, S, S], or why the image is of no use
Model = Callable[[Tensor], Tensor]  # uint8 images_BCHW -> float64 probabilities_BK, on the CPU
Guess = Callable[[Sequence[Tensor]], list[Guesses]]


def classify(
    weights: Path, paths: Sequence[str], *, top: int, format: str, output: Path | None, precision: str = "auto"
) -> int:
    """Classifies the images at `paths` with the model in `weights` (best/ or final/ of a run). The exit code.

    Raises:
        UserError: nothing at a path, damaged weights, weights that give no numbers, an output that cannot be written.
    """
    with interruptible() as interrupted, ExitStack() as archives:
        pictures = find(paths, archives)
        model, about = models.load(weights)
        probabilities, where = on_device(model, about, weights, precision)
        top = min(top, len(about["classes"]))
        guess = partial(_guesses, probabilities, about["classes"], top)
        form = _form(format, pictures, about["classes"], top)
        begun = time.monotonic()
        try:
            silent = output is None or not sys.stderr.isatty()  # rows on a terminal are progress enough
            with (
                destination(output) as write,
                closing(batches(pictures, about)) as coming,
                tqdm(total=len(pictures), unit=" images", leave=False, disable=silent) as bar,
            ):
                wanted = itertools.takewhile(lambda _: not interrupted(), coming)
                tally = _write_all(write, form, wanted, guess, bar.update)
        except BrokenPipeError:  # `| head` has seen enough; what is still buffered has nowhere to go either
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), sys.stdout.fileno())
            return FINISHED
        except OSError as error:
            raise UserError(f"{output or 'stdout'} cannot be written ({error.strerror}).") from error
    seconds, skipped = time.monotonic() - begun, tally[False]
    counts = f"{tally[True]:,} of {len(pictures):,} images" + (f", {skipped:,} skipped," if skipped else "")
    print(f"{counts} in {seconds:.1f} s: {about['model']} of {shown(str(weights))}, {where}", file=sys.stderr)
    if left := len(pictures) - tally.total():
        print(f"interrupted: {left:,} images were not looked at", file=sys.stderr)
        return PERSON_DECIDES
    return FAILED if skipped else FINISHED


def _write_all(
    write: Write, form: Form, coming: Iterable[list[Outcome]], guess: Guess, advance: Callable[[int], object]
) -> "Counter[bool]":
    """Writes a row for each image that is of use, and names the others. How many were (True), and were not (False)."""
    tally: Counter[bool] = Counter()
    write(form.head())
    for batch in coming:
        rows = iter(guess([pixels for _, pixels in batch if isinstance(pixels, Tensor)]))
        for picture, found in batch:
            tally[isinstance(found, Tensor)] += 1
            if isinstance(found, str):
                tqdm.write(f"skipped {picture.name}: {found}", file=sys.stderr)
            else:
                write(form.row(picture.name, next(rows)))
        advance(len(batch))
    write(form.tail())
    return tally


def _form(name: str, pictures: Sequence[Picture], classes: Sequence[str], top: int) -> Form:
    if name == "table":
        return Table([picture.name for picture in pictures], classes, top)
    return Csv(top) if name == "csv" else Json()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, so that what is done is written whole; a second one ends the program at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def on_device(model: torch.nn.Module, about: dict[str, Any], weights: Path, wanted: str) -> tuple[Model, str]:
    """(the model, where it computes and in which precision)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = precision.resolve(_usual_precision(weights, device) if wanted == "auto" else wanted, device)
    autocast = precision.Precision(name, device).autocast
    module = model.to(device)

    def probabilities(images_BCHW: Tensor) -> Tensor:
        normal_BCHW = augment.normalise(images_BCHW.to(device), about["mean"], about["std"])
        with torch.inference_mode(), autocast():
            logits_BK: Tensor = module(normal_BCHW).float()
        if not logits_BK.isfinite().all():
            raise UserError(f"the model in {weights} gives no numbers (NaN or infinite): try other weights, --which.")
        return logits_BK.double().softmax(1).cpu()

    return probabilities, f"on the {'GPU' if device.type == 'cuda' else 'CPU'} in {name}"


def _usual_precision(weights: Path, device: torch.device) -> str:
    """What the run was told; auto where that asks for a GPU that is not here."""
    try:
        told = str(read_json(weights.parent / "config.json")["config"]["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto"
    return told if told in ("bf16", "fp32") or (told == "fp16" and device.type == "cuda") else "auto"


def batches(pictures: Sequence[Picture], about: dict[str, Any]) -> Generator[list[Outcome], None, None]:
    """All pictures in their order, decoded by as many threads as there are cores, a few batches ahead."""
    size = max(1, min(MOST_AT_ONCE, BATCH_PIXELS // about["image_size"] ** 2))
    coming = iter(pictures)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="pitstop-decode")
    try:
        with decoding.quiet_pillow():
            ahead = deque(pool.submit(_outcome, one, about) for one in itertools.islice(coming, BATCHES_AHEAD * size))
            while ahead:
                batch = [ahead.popleft().result() for _ in range(min(size, len(ahead)))]
                ahead.extend(pool.submit(_outcome, one, about) for one in itertools.islice(coming, size))
                yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(picture: Picture, about: dict[str, Any]) -> Outcome:
    data = picture.read()
    return picture, data if isinstance(data, str) else pixels(data, about)


def pixels(data: bytes, about: dict[str, Any]) -> Tensor | str:
    """An image file as the evaluation of the run sees it, uint8 [C, image_size, image_size]; or why it is of no use.

    A model of one channel sees an image in colour as grey (ITU-R 601-2, as Pillow's "L").
    """
    if data[4:12] in HEIC:
        return "HEIC, which is not read: save it as JPEG or PNG"
    size, load_size = about["image_size"], about.get("load_size")
    if load_size is not None:
        photo_CHW = decoding.decode_photo(data, load_size)
        image_CHW = photo_CHW if isinstance(photo_CHW, str) else decoding.centre(photo_CHW, size)
    else:
        decoded = decoding.decode(data, size)
        image_CHW = decoded if isinstance(decoded, str) else torch.from_numpy(np.ascontiguousarray(decoded[0]))
    if isinstance(image_CHW, str) or about["channels"] == 3:
        return image_CHW
    red_HW, green_HW, blue_HW = image_CHW.to(torch.int32)
    grey_HW: Tensor = (19595 * red_HW + 38470 * green_HW + 7471 * blue_HW + 32768) >> 16
    return grey_HW.to(torch.uint8)[None]


def _guesses(probabilities: Model, classes: Sequence[str], top: int, images: Sequence[Tensor]) -> list[Guesses]:
    """The likeliest `top` classes of each image."""
    if not images:
        return []
    shares_BT, indices_BT = probabilities(torch.stack(list(images))).topk(top)
    return [
        [(classes[index], share) for index, share in zip(indices, shares, strict=True)]
        for indices, shares in zip(indices_BT.tolist(), shares_BT.tolist(), strict=True)
    ]
