"""One image file, as bytes, to RGB pixels of one size; or the reason, in words, why it is of no use."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
MIN_SIDE = 8
MAX_FILE_BYTES = 64_000_000
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}
# Not all that Pillow can open: EPS, for one, would start Ghostscript, which is a program run from data.
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
        warnings.simplefilter("ignore")  # of size (refused below), of broken EXIF, of palettes
        yield


def decode(data: bytes, size: int) -> tuple[NDArray[np.uint8], bool] | str:
    """RGB pixels (3, size, size), uint8 0..255, and whether they were resized; or why the file is of no use.

    Turned upright by EXIF, the first frame of several, transparency on white, 16-bit grey scaled to 8 bit. Resized
    (bilinear, antialiased) without regard to the aspect ratio.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"{width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million"
            if min(width, height) < MIN_SIDE:
                return f"{width}x{height} pixels, less than {MIN_SIDE} on a side"
            image.load()  # TIFF turns itself upright here, and then says so in its EXIF
            rgb = _to_rgb(image)
            if turn := TRANSPOSE.get(_orientation(image)):
                rgb = rgb.transpose(turn)
            resized = rgb.size != (size, size)
            if resized:
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb).transpose(2, 0, 1), resized
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
