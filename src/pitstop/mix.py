"""Mixup and cutmix: each image of a batch blended with its neighbour, by choices that are functions of (seed, step)."""

import math

import torch
from torch import Tensor

from pitstop.errors import UserError
from pitstop.randomness import MIXING, uniform

COIN, RADIUS, ANGLE, CENTRE_Y, CENTRE_X = range(5)


def symmetric_beta(alpha: float, radius: float, angle: float) -> float:
    """A number in 0..1 that has the distribution Beta(alpha, alpha) if `radius` and `angle` are uniform in [0, 1).

    Exact for every alpha, and nothing is rejected: Devroye, Random Variate Generation in One Line of Code (1996). The
    middle of it is Bailey's way to Student's t of 2 alpha degrees of freedom.
    """
    largest = 700.0  # e**700 is still a float, and gives 0 or 1
    t = math.sqrt(math.expm1(min(largest, -math.log1p(-radius) / alpha))) * math.cos(2 * math.pi * angle)
    return 0.5 + 0.5 * t / math.hypot(1.0, t)


def cut_box(height: int, width: int, share: float, y: float, x: float) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box with `share` of the area around the uniform y, x, cut off at the edges."""
    half_height, half_width = (int(side * math.sqrt(share)) / 2 for side in (height, width))
    centre_y, centre_x = int(y * height), int(x * width)
    top, bottom = (min(max(math.floor(centre_y + s * half_height), 0), height) for s in (-1, 1))
    left, right = (min(max(math.floor(centre_x + s * half_width), 0), width) for s in (-1, 1))
    return top, bottom, left, right


class Mix:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019), or by a coin for each step one of both.

    An image at an even place of the batch and the one after it are partners, so the slices of several ranks, which
    begin at even places, are mixed as one process mixes the whole; an odd last one is its own.

    Args:
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the share of an image is drawn; 0: not this one.

    Raises:
        UserError: a negative alpha, or neither of the two is wanted.
    """

    def __init__(self, num_classes: int, seed: int, *, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise UserError(f"--{name} {alpha}: 0 (off) or a positive number was expected, 0.2 or 1.0 say.")
        if not mixup and not cutmix:
            raise UserError("Neither --mixup nor --cutmix is above 0: there is nothing to mix.")
        self.num_classes, self.seed, self.mixup, self.cutmix = num_classes, seed, mixup, cutmix

    def _drawn(self, step: int, lane: int) -> float:
        return uniform(MIXING, self.seed, step, lane)

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """float32 images_BCHW and int64 labels_B to images and the classes' shares, float32 [B, K].

        The images given are not changed; memory order stays.
        """
        cuts = not self.mixup or bool(self.cutmix and self._drawn(step, COIN) < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = symmetric_beta(alpha, self._drawn(step, RADIUS), self._drawn(step, ANGLE))
        partners_B = (torch.arange(len(labels_B), device=labels_B.device) ^ 1).clamp(max=len(labels_B) - 1)
        if cuts:
            images_BCHW, share = self._cut(images_BCHW, partners_B, share, step)
        else:  # products and a sum, each rounded by itself: the same bits wherever in a slice an image stands
            images_BCHW = images_BCHW * share + images_BCHW[partners_B] * (1 - share)
        classes_K = torch.arange(self.num_classes, device=labels_B.device)
        targets_BK = (labels_B[:, None] == classes_K).float()
        return images_BCHW, targets_BK * share + targets_BK[partners_B] * (1 - share)

    def _cut(self, images_BCHW: Tensor, partners_B: Tensor, share: float, step: int) -> tuple[Tensor, float]:
        """A box of each image from its partner; and the share of pixels that are the image's own."""
        height, width = images_BCHW.shape[2:]
        centre = self._drawn(step, CENTRE_Y), self._drawn(step, CENTRE_X)
        top, bottom, left, right = cut_box(height, width, 1 - share, *centre)
        mixed_BCHW = images_BCHW.clone()
        mixed_BCHW[:, :, top:bottom, left:right] = images_BCHW[partners_B, :, top:bottom, left:right]
        return mixed_BCHW, 1 - (bottom - top) * (right - left) / (height * width)
