"""Grad-CAM (Selvaraju et al., ICCV 2017): which places of an image spoke for what the model said. The one part of the
report that computes with the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pitstop.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_MAP = 4  # a side of fewer places says nothing about where


@dataclass(frozen=True)
class Cams:
    """heat_MHW: float32 in 0..1, of the size of the images; `layer` has maps of `size` places."""

    heat_MHW: NDArray[np.float32]
    layer: str
    size: tuple[int, int]


@contextmanager
def _maps(model: "nn.Module", names: Sequence[str]) -> Iterator[dict[str, "Tensor"]]:
    """Outputs of these modules in the forward passes meanwhile, by name."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _stages(model: "nn.Module") -> list[str]:
    """The convolutional stages, the first first; empty for a model that timm does not describe so."""
    about = getattr(model, "feature_info", None)
    rows = about if isinstance(about, list) else getattr(about, "info", [])
    modules = dict(model.named_modules())
    names = [str(row.get("module")) for row in rows if isinstance(row, dict)]
    return [name for name in names if name in modules]


def _deepest(maps: dict[str, "Tensor"]) -> str:
    """The last stage whose maps are not too small, else the last that has any. Raises UserError if none has."""
    fit = {name: tuple(tensor.shape[2:]) for name, tensor in maps.items() if getattr(tensor, "ndim", 0) == 4}
    large = [name for name, size in fit.items() if min(size) >= SMALLEST_MAP] or [
        name for name, size in fit.items() if min(size) > 1
    ]
    if not large:
        raise UserError("the model has no convolutional stage whose maps say where")
    return large[-1]


def grad_cam(run: Path, weights: str, pictures_HWC: Sequence[NDArray[np.uint8]]) -> Cams:
    """For the class that the model in final/ or best/ says of each picture.

    Raises:
        UserError: the model is not there, does not take these pictures, or has no convolutional stage.
    """
    import torch
    from torch.nn import functional

    from pitstop import models
    from pitstop.augment import normalise

    model, card = models.load(run / weights)
    images_BCHW = torch.from_numpy(np.stack(pictures_HWC).transpose(0, 3, 1, 2).copy())
    if images_BCHW.shape[1] != len(card["mean"]):
        raise UserError(f"the model takes {len(card['mean'])} channels, the pictures have {images_BCHW.shape[1]}")
    with _maps(model, _stages(model)) as maps, torch.enable_grad():
        logits_BK = model(normalise(images_BCHW, card["mean"], card["std"]))
        layer = _deepest(maps)
        (slopes_BCHW,) = torch.autograd.grad(logits_BK.max(1).values.sum(), maps[layer])
        places_BCHW = maps[layer].detach()
    weights_BC11 = slopes_BCHW.mean((2, 3), keepdim=True)
    heat_B1HW = functional.relu((weights_BC11 * places_BCHW).sum(1, keepdim=True))
    heat_B1HW = functional.interpolate(heat_B1HW, images_BCHW.shape[2:], mode="bilinear", align_corners=False)
    heat_BHW = heat_B1HW[:, 0] / heat_B1HW.amax((1, 2, 3)).clamp(min=1e-12)[:, None, None]
    height, width = places_BCHW.shape[2:]
    return Cams(heat_BHW.numpy().astype(np.float32), layer, (height, width))


def heated(pixels_HWC: NDArray[np.uint8], heat_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: the picture in grey, the heat above it in colour."""
    from matplotlib import colormaps

    grey_HW1 = pixels_HWC.astype(np.float32).mean(-1, keepdims=True) / 255
    colour_HW3 = colormaps["inferno"](heat_HW)[..., :3].astype(np.float32)
    weight_HW1 = 0.25 + 0.5 * heat_HW[..., None]
    mixed: NDArray[np.uint8] = (255 * ((1 - weight_HW1) * grey_HW1 + weight_HW1 * colour_HW3)).round().astype(np.uint8)
    return mixed
