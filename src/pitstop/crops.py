"""What a worker makes of one large image: crop, flip, distortion, by choices that are functions of (seed, position)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from pitstop.randomness import draw

functional: Any = v2.functional  # which has types, but not for names that it brings from elsewhere

RATIO = (3 / 4, 4 / 3)  # width over height of a crop, as in Going Deeper with Convolutions (Szegedy et al. 2015)
TRIES = 10  # for a crop that lies inside the image, before the centre is taken
JITTER, DEGREES = 0.2, 15.0  # of "light"
Augment = Literal["none", "light", "strong"]
# Lanes of the random numbers. A crop takes two for each try: AREA + 2 * n and ASPECT + 2 * n.
TOP, LEFT, FLIP, TURN, BRIGHT, CONTRAST, COLOUR, OPERATION, MAGNITUDE, SIGN, AREA, ASPECT = range(12)
BINS = 31  # of the magnitude, in TrivialAugment

Draw = Callable[[int], float]  # lane -> uniform in [0, 1)


def _whole(share: float, low: int, high: int) -> int:
    """A uniform number in [0, 1) as an integer in low..high, both included."""
    return low + int(share * (high - low + 1))


def crop_box(height: int, width: int, min_scale: float, drawn: Draw) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of `min_scale`..1 of the area, as torchvision's RandomResizedCrop has it."""
    for number in range(TRIES):
        area = height * width * (min_scale + (1 - min_scale) * drawn(AREA + 2 * number))
        low, high = map(math.log, RATIO)
        aspect = math.exp(low + (high - low) * drawn(ASPECT + 2 * number))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _whole(drawn(TOP), 0, height - h), _whole(drawn(LEFT), 0, width - w), h, w
    h = min(height, max(1, round(width / RATIO[0])))
    w = min(width, max(1, round(height * RATIO[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def _jittered(image_CHW: Tensor, drawn: Draw) -> Tensor:
    """Turned by up to 15 degrees, and brightness, contrast, saturation times 0.8..1.2."""

    def signed(lane: int) -> float:
        return 2 * drawn(lane) - 1

    image_CHW = functional.rotate(
        image_CHW, DEGREES * signed(TURN), interpolation=functional.InterpolationMode.BILINEAR
    )
    image_CHW = functional.adjust_brightness(image_CHW, 1 + JITTER * signed(BRIGHT))
    image_CHW = functional.adjust_contrast(image_CHW, 1 + JITTER * signed(CONTRAST))
    jittered_CHW: Tensor = functional.adjust_saturation(image_CHW, 1 + JITTER * signed(COLOUR))
    return jittered_CHW


def _affine(image_CHW: Tensor, x: float, y: float, *, shear: bool) -> Tensor:
    """Sheared from the upper left corner by the slopes x, y; or moved by x, y pixels."""
    slopes = [math.degrees(math.atan(slope)) for slope in (x, y)] if shear else [0.0, 0.0]
    pixels = [0, 0] if shear else [int(x), int(y)]
    moved_CHW: Tensor = functional.affine(image_CHW, 0.0, pixels, 1.0, slopes, center=[0, 0] if shear else None)
    return moved_CHW


Operation = Callable[[Tensor, float], Tensor]  # (uint8 image_CHW, magnitude)
# TrivialAugment's "wide" list (Müller and Hutter 2021), with torchvision's reading of it: the operation, the magnitude
# of the first and of the last bin, and whether its sign is drawn too.
OPERATIONS: tuple[tuple[Operation, float, float, bool], ...] = (
    (lambda image, _: image, 0.0, 0.0, False),
    (lambda image, m: _affine(image, m, 0, shear=True), 0.0, 0.99, True),
    (lambda image, m: _affine(image, 0, m, shear=True), 0.0, 0.99, True),
    (lambda image, m: _affine(image, m, 0, shear=False), 0.0, 32.0, True),
    (lambda image, m: _affine(image, 0, m, shear=False), 0.0, 32.0, True),
    (lambda image, m: functional.rotate(image, m), 0.0, 135.0, True),
    (lambda image, m: functional.adjust_brightness(image, 1 + m), 0.0, 0.99, True),
    (lambda image, m: functional.adjust_saturation(image, 1 + m), 0.0, 0.99, True),
    (lambda image, m: functional.adjust_contrast(image, 1 + m), 0.0, 0.99, True),
    (lambda image, m: functional.adjust_sharpness(image, 1 + m), 0.0, 0.99, True),
    (lambda image, m: functional.posterize(image, round(m)), 8.0, 2.0, False),
    (lambda image, m: functional.solarize(image, m), 255.0, 0.0, False),
    (lambda image, _: functional.autocontrast(image), 0.0, 0.0, False),
    (lambda image, _: functional.equalize(image), 0.0, 0.0, False),
)


def trivial_augment(image_CHW: Tensor, operation: int, magnitude_bin: int, *, negative: bool) -> Tensor:
    """One operation of the list, with the magnitude of a bin 0..30; `negative` counts where the sign is drawn."""
    function, first, last, signed = OPERATIONS[operation]
    magnitude = first + (last - first) * magnitude_bin / (BINS - 1)
    return function(image_CHW, -magnitude if signed and negative else magnitude)


class RandomCrop:
    """A random crop at `size` pixels, mirrored half the time, and distorted: for the images of a training.

    Args:
        size: side of the result, in pixels.
        min_scale: least share of the image's area that a crop shows, above 0 and at most 1.
        augment: "none" (crop and mirror only), "light" (turned by up to 15 degrees, colour jitter of 0.2) or "strong"
            (TrivialAugment: one operation out of 14).
    """

    def __init__(self, size: int, seed: int, *, min_scale: float = 0.35, augment: Augment = "light") -> None:
        self.size, self.seed, self.min_scale, self.augment = size, seed, min_scale, augment

    def __call__(self, image_CHW: Tensor, position: int) -> Tensor:
        """uint8 image_CHW of any size, at its place in the stream, to uint8 [C, size, size]."""
        drawn = partial(draw, self.seed, position)
        top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], self.min_scale, drawn)
        # In this order torch sees that the channels are last, and takes a third of the time for the same bits.
        image_BCHW = image_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)[:, :, top : top + height, left : left + width]
        image_CHW = interpolate(image_BCHW, size=(self.size, self.size), mode="bilinear", antialias=True)[0]
        if drawn(FLIP) < 0.5:
            image_CHW = image_CHW.flip(2)
        if self.augment == "light":
            return _jittered(image_CHW.contiguous(), drawn)  # channels apart: these take half the time then
        if self.augment == "strong":
            operation = _whole(drawn(OPERATION), 0, len(OPERATIONS) - 1)
            magnitude_bin = _whole(drawn(MAGNITUDE), 0, BINS - 1)
            return trivial_augment(image_CHW.contiguous(), operation, magnitude_bin, negative=drawn(SIGN) < 0.5)
        return image_CHW
