"""Pictures by what the model made of them: for the page one by one, for the files as grids."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pitstop.report.figures import literal
from pitstop.report.read import Predictions
from pitstop.report.scores import Scores
from pitstop.report.style import ACCENT, WIDTH_INCHES, Text

Pixels = NDArray[np.uint8]

SHOWN = 24  # of each group
COLUMNS = 8
SPACING_X, SPACING_Y = 1.12, 1.48  # of the grid, in sides of a picture
LETTERS = 13  # of a name below a picture of the grid
LARGEST_SIDE = 112  # pixels in the page: three groups of 24 stay well below its 3 MB
PNG_UP_TO = 48  # pixels: smaller pictures lose by JPEG and do not gain


@dataclass(frozen=True)
class Picture:
    """pixels_HWC: uint8, C = 1 or 3. confidence: of what the model said."""

    pixels_HWC: Pixels
    true: int
    said: int
    confidence: float
    name: str


def groups(predictions: Predictions, scores: Scores) -> dict[str, list[Picture]]:
    """`mistakes` and `hits`, the most confident first; `uncertain`, the closest of the two likeliest classes first."""
    confidence_M = scores.confidence_N[predictions.rows_M]
    right_M = scores.right_N[predictions.rows_M]
    top_M2 = np.sort(scores.probabilities_NK[predictions.rows_M], 1)[:, -2:]
    falling = np.argsort(-confidence_M, kind="stable")
    chosen = {
        "mistakes": [index for index in falling if not right_M[index]],
        "uncertain": list(np.argsort(top_M2[:, 1] - top_M2[:, 0], kind="stable")),
        "hits": [index for index in falling if right_M[index]],
    }
    return {
        name: [_picture(predictions, scores, int(index)) for index in indices[:SHOWN]]
        for name, indices in chosen.items()
    }


def _picture(predictions: Predictions, scores: Scores, index: int) -> Picture:
    row = predictions.rows_M[index]
    return Picture(
        pixels_HWC=predictions.images_MHWC[index],
        true=int(scores.labels_N[row]),
        said=int(scores.predicted_N[row]),
        confidence=float(scores.confidence_N[row]),
        name=predictions.names[index],
    )


def data_uri(pixels_HWC: Pixels) -> str:
    """`data:image/png;base64,...`, at most LARGEST_SIDE pixels wide and high."""
    image = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    small, file = max(image.size) <= PNG_UP_TO, io.BytesIO()
    if small:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=82)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(pictures: list[Picture], text: Text) -> Figure:
    """The pictures in rows of eight, with what the model said below, and what is true where that is another."""
    figure, axes = _sheet(len(pictures))
    for index, picture in enumerate(pictures):
        x, y = _place(index)
        _show(axes, picture.pixels_HWC, x, y)
        said, true = (literal(text.classes[index], LETTERS) for index in (picture.said, picture.true))
        axes.text(x, y + 1.06, f"{said}, {100 * picture.confidence:.0f} %", fontsize=5.5, va="top")
        if picture.said != picture.true:
            wrong = text.words("picture_true", true=true)
            axes.text(x, y + 1.23, wrong, fontsize=5.5, va="top", color=ACCENT)
    return figure


def pairs(pictures: list[Picture], heated: list[Pixels], text: Text) -> Figure:
    """Each picture beside itself with the places that spoke for what the model said."""
    figure, axes = _sheet(2 * len(pictures))
    for index, (picture, hot_HWC) in enumerate(zip(pictures, heated, strict=True)):
        x, y = _place(2 * index)
        _show(axes, picture.pixels_HWC, x, y)
        _show(axes, hot_HWC, x + SPACING_X, y)
        axes.text(x, y + 1.06, literal(text.classes[picture.said], LETTERS), fontsize=5.5, va="top")
    return figure


def _place(index: int) -> tuple[float, float]:
    return index % COLUMNS * SPACING_X, index // COLUMNS * SPACING_Y


def _sheet(cells: int) -> tuple[Figure, Axes]:
    """One pair of axes for all pictures: a pair for each would take matplotlib ten times as long."""
    rows = -(-cells // COLUMNS)
    width = COLUMNS * SPACING_X
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES * rows * SPACING_Y / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.02, width - 0.02), ylim=(rows * SPACING_Y - 0.02, -0.02))
    axes.set_axis_off()
    return figure, axes


def _show(axes: Axes, pixels_HWC: Pixels, x: float, y: float) -> None:
    limits = axes.axis()
    pixels = pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    axes.axis(limits)
