"""Batched augmentation on the device. Each choice is a function of (seed, position): no generator, no state."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pitstop.errors import UserError
from pitstop.randomness import draws, integers

FLIP, SHIFT_Y, SHIFT_X, CUT_Y, CUT_X = range(5)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Offset and scale of a pixel value. Kept, because bringing them to a GPU would make every step wait."""
    offset_C, scale_C = 255 * torch.tensor(mean, device=device), 1 / (255 * torch.tensor(std, device=device))
    return offset_C[:, None, None], scale_C[:, None, None]


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images as float32 with the given mean and std (of pixel values in 0..1) taken out; channels_last."""
    offset_C11, scale_C11 = _constants(tuple(mean), tuple(std), images_BCHW.device)
    images_BCHW = images_BCHW.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return images_BCHW.sub_(offset_C11).mul_(scale_C11)  # in place: on a CPU the pages of new memory cost more


def _shift(images_BCHW: Tensor, pixels: int, draws_BK: Tensor) -> Tensor:
    """Each image moved by up to `pixels` both ways, black where nothing was: a crop out of the padded image."""
    size, batch = images_BCHW.shape[-1], images_BCHW.shape[0]
    padded_BCHW = functional.pad(images_BCHW, (pixels,) * 4)
    along = torch.arange(size, device=images_BCHW.device)
    rows_BH = integers(draws_BK[:, SHIFT_Y], 0, 2 * pixels)[:, None] + along
    columns_BW = integers(draws_BK[:, SHIFT_X], 0, 2 * pixels)[:, None] + along
    batch_B = torch.arange(batch, device=images_BCHW.device)
    picked_BHWC = padded_BCHW.permute(0, 2, 3, 1)[batch_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
    return picked_BHWC.permute(0, 3, 1, 2)


def _cutout_mask(size: int, square: int, draws_BK: Tensor) -> Tensor:
    """bool [B, 1, size, size]: a square that lies inside the image (cutout, DeVries and Taylor 2017)."""
    along = torch.arange(size, device=draws_BK.device)
    top_B = integers(draws_BK[:, CUT_Y], 0, size - square)[:, None]
    left_B = integers(draws_BK[:, CUT_X], 0, size - square)[:, None]
    rows_BH = (along >= top_B) & (along < top_B + square)
    columns_BW = (along >= left_B) & (along < left_B + square)
    return (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]


class Standard:
    """Flip, shift and cutout, then normalisation: uint8 images_BCHW and positions_B to float32 images_BCHW.

    Args:
        mean, std: of the training images, per channel, of pixel values in 0..1.
        size: side of the images, in pixels.
        flip: mirror every second image (at random).
        shift: most pixels by which an image moves.
        cutout: side of the square that is set to the mean; 0: none.

    Raises:
        UserError: shift or cutout leave nothing of the image.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: int,
        seed: int,
        flip: bool,
        shift: int = 0,
        cutout: int = 0,
    ) -> None:
        for name, pixels in (("shift", shift), ("cutout", cutout)):
            if pixels >= size:
                raise UserError(f"--{name} {pixels}: less than the {size} pixels of an image was expected.")
        self.mean, self.std, self.seed = mean, std, seed
        self.flip, self.shift, self.cutout = flip, shift, cutout

    def draws(self, positions_B: Tensor) -> Tensor:
        """The random numbers of these positions: float32 [B, 5] in [0, 1), in the order FLIP .. CUT_X."""
        return draws(self.seed, positions_B, 5)

    def __call__(self, images_BCHW: Tensor, positions_B: Tensor) -> Tensor:
        draws_BK = self.draws(positions_B)
        if self.flip:
            images_BCHW = torch.where((draws_BK[:, FLIP] < 0.5)[:, None, None, None], images_BCHW.flip(3), images_BCHW)
        if self.shift:
            images_BCHW = _shift(images_BCHW, self.shift, draws_BK)
        images_BCHW = normalise(images_BCHW, self.mean, self.std)
        if self.cutout:
            images_BCHW.masked_fill_(_cutout_mask(images_BCHW.shape[-1], self.cutout, draws_BK), 0.0)  # keeps strides
        return images_BCHW
