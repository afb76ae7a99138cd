"""One image file to RGB pixels of one size, or to a photo of one shorter side; or the reason why it is of no use."""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

T = TypeVar("T")

MAX_PIXELS = 64_000_000
MIN_SIDE = 8
MAX_FILE_BYTES = 64_000_000
MAX_ASPECT = 4  # of a photo: of a longer one the middle is taken
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
# Not all that Pillow can open: EPS, for one, would start Ghostscript, which is a program run from data.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")

# Pillow's decoders let through whatever their parsing stumbles over in a damaged file.
BAD_FILE = (
    OSError,  # truncated, unidentified
    SyntaxError,  # broken PNG and TIFF headers
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
)

EXIF_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """To be held around all calls of `decode`, by the thread that starts the others: filters are of the process."""
    with warnings.catch_warnings():
        # Of size (refused below), of broken EXIF, of palettes, of pixels that are only to be read.
        warnings.simplefilter("ignore")
        yield


def decode(data: bytes, size: int) -> tuple[NDArray[np.uint8], bool] | str:
    """RGB pixels (3, size, size), uint8 0..255, and whether they were resized; or why the file is of no use.

    Turned upright by EXIF, the first frame of several, transparency on white, 16-bit grey scaled to 8 bit. Resized
    (bilinear, antialiased) without regard to the aspect ratio.
    """

    def pixels(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
        rgb = _upright(image)
        resized = rgb.size != (size, size)
        if resized:
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(rgb).transpose(2, 0, 1), resized

    return _opened(io.BytesIO(data), pixels)


def centre(image_CHW: Tensor, size: int) -> Tensor:
    """The middle of an image, size x size: what an evaluation sees of a photo."""
    top, left = ((side - size) // 2 for side in image_CHW.shape[1:])
    return image_CHW[:, top : top + size, left : left + size]


def decode_photo(data: bytes, shorter: int) -> Tensor | str:
    """uint8 [3, h, w], the shorter side `shorter` long and the longer at most 4 times that; or why there is none.

    In memory the channels are last, on which torch's resizing takes a third of the time, for the same bits. Of what is
    longer the middle is taken. A large JPEG is decoded at a half, a quarter or an eighth of its size, if
    that is not smaller than what is wanted. Otherwise as `decode` does.
    """

    def pixels(image: Image.Image) -> Tensor:
        width, height = image.size
        scale = shorter / min(width, height)
        image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        return _resized(torch.from_numpy(np.asarray(_upright(image))), shorter)  # not writable, of which torch warns

    return _opened(io.BytesIO(data), pixels)


def _resized(photo_HWC: Tensor, shorter: int) -> Tensor:
    """uint8 [3, h, w]. Bilinear and antialiased; torch is quicker at it than Pillow, and counts in integers."""
    height, width = photo_HWC.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
        photo_HWC = photo_HWC[top : top + longest, left : left + longest]
        height, width = photo_HWC.shape[:2]
    size = [round(side * shorter / min(height, width)) for side in (height, width)]
    if size == [height, width]:
        return photo_HWC.contiguous().permute(2, 0, 1)
    photo_BCHW = photo_HWC[None].permute(0, 3, 1, 2)  # in this order torch sees that the channels are last
    return channels_last(functional.interpolate(photo_BCHW, size=size, mode="bilinear", antialias=True))[0]


def channels_last(images_BCHW: Tensor) -> Tensor:
    """The same, in memory with the channels last."""
    return images_BCHW.contiguous(memory_format=torch.channels_last)


def examine(file: BinaryIO, shorter: int) -> str | None:
    """Why an image file is of no use, as far as its header and its end tell; None: of use.

    A JPEG or PNG that ends as it should is not decoded, which makes this quick; everything else is.
    """

    def end(image: Image.Image) -> bytes:
        file.seek(-8, io.SEEK_END)
        return file.read() if image.format in ENDS else b""

    if isinstance(last := _opened(file, end), str):
        return last
    if last.endswith(tuple(ENDS.values())):
        return None
    file.seek(0)
    decoded = decode_photo(file.read(), shorter)
    return decoded if isinstance(decoded, str) else None


def _opened(file: BinaryIO, use: Callable[[Image.Image], T]) -> T | str:
    """What `use` makes of the image, which is not decoded yet; or why there is none."""
    try:
        with Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"{width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million"
            if min(width, height) < MIN_SIDE:
                return f"{width}x{height} pixels, less than {MIN_SIDE} on a side"
            return use(image)
    except UnidentifiedImageError:
        return "no image that can be read"
    except Image.DecompressionBombError:
        return f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
    except BAD_FILE as error:
        return str(error) or type(error).__name__


@cache
def _formats() -> tuple[str, ...]:
    Image.init()  # an older Pillow has no AVIF
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except BAD_FILE:  # the pixels are right even where the EXIF is not
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """RGB, turned by its EXIF."""
    image.load()  # TIFF turns itself upright here, and then says so in its EXIF
    rgb = _to_rgb(image)
    turn = TRANSPOSE.get(_orientation(image))
    return rgb.transpose(turn) if turn else rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise ValueError("32-bit pixels: save it with 8 or 16 bit")
        return Image.fromarray(((grey_HW * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels: save it with 8 or 16 bit")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
