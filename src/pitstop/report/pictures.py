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
from pitstop.report.style import WIDTH_INCHES, Text

Pixels = NDArray[np.uint8]

SHOWN = 24  # of each group
COLUMNS = 8
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
    """The pictures in rows of eight, with what the model said above and what is true below."""
    rows = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(WIDTH_INCHES, 1.35 * rows))
    for axes, picture in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, pictures, strict=False):
        _show(axes, picture.pixels_HWC)
        said, true = (literal(text.classes[index]) for index in (picture.said, picture.true))
        axes.set_title(
            f"{said}\n{100 * picture.confidence:.0f} %", fontsize=6, loc="center", fontweight="normal", pad=2
        )
        if picture.said != picture.true:
            axes.set_xlabel(text.words("picture_true", true=true), fontsize=6, labelpad=2)
    for axes in figure.axes[len(pictures) :]:
        axes.set_axis_off()
    return figure


def pairs(pictures: list[Picture], heated: list[Pixels], text: Text) -> Figure:
    """Each picture beside itself with the places that spoke for what the model said."""
    figure = Figure(figsize=(WIDTH_INCHES, 1.35 * -(-2 * len(pictures) // COLUMNS)))
    cells = figure.subplots(-(-2 * len(pictures) // COLUMNS), COLUMNS, squeeze=False).flat
    for picture, hot_HWC in zip(pictures, heated, strict=True):
        said, axes = literal(text.classes[picture.said]), next(cells)
        _show(axes, picture.pixels_HWC)
        axes.set_title(said, fontsize=6, loc="center", fontweight="normal", pad=2)
        _show(next(cells), hot_HWC)
    for axes in cells:
        axes.set_axis_off()
    return figure


def _show(axes: Axes, pixels_HWC: Pixels) -> None:
    axes.imshow(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
