"""timm's models, with a stem that fits the images."""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from pitstop.errors import UserError
from pitstop.randomness import MODEL_INIT, seed_generators


def _small_stem(model: nn.Module) -> bool:
    """Makes a residual network keep the size of a small image: 3x3 stem of stride 1, no max-pool. False: no such stem.

    A stock stem leaves 8x8 of 32x32: resnet18 then stays below 90 % on CIFAR-10, resnet34 16 points lower on CIFAR-100
    (pytorch-image-models#2481).
    """
    conv1, maxpool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if conv1 is None or maxpool is None:
        return False
    if isinstance(conv1, nn.Conv2d):
        model.conv1 = nn.Conv2d(conv1.in_channels, conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's resnet does
    else:
        for conv in conv1.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
    model.maxpool = nn.Identity()
    return True


def _check_size(model: nn.Module, name: str, channels: int, image_size: int) -> None:
    """One image through the model without computing anything. Raises UserError if it does not fit."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"--model {name} does not take images of {image_size}x{image_size} pixels: {error}. "
            "A convolutional model (resnet18, resnet34, mobilenetv3_small_100, ...) does."
        ) from error
    model.train()


def _build(name: str, image_size: int, seed: int, **arguments: Any) -> nn.Module:
    """timm's model with weights that depend on `seed` alone. Only models of a fixed size (ViT, say) take `img_size`;
    nothing tells which, before they are asked."""
    seed_generators(MODEL_INIT, seed, device=torch.device("cpu"))
    try:
        model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError:
        seed_generators(MODEL_INIT, seed, device=torch.device("cpu"))
        model = timm.create_model(name, **arguments)
    return model


def create(name: str, *, classes: Sequence[str], channels: int, image_size: int, stem: str, seed: int) -> nn.Module:
    """A timm model with fresh weights that depend on `seed` alone, in channels_last, in fp32, on the CPU.

    Args:
        stem: "small" (3x3, no max-pool), "imagenet" (as timm has it), or "auto": small where the model has such a
            stem and the images are smaller than 64 pixels.

    Raises:
        UserError: no such model, no such stem, or it does not take images of this size.
    """
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " timm.list_models() lists them all."
        raise UserError(f"--model {name}: timm {timm.__version__} has no such model.{hint}")
    model = _build(name, image_size, seed, num_classes=len(classes), in_chans=channels)
    wanted = stem == "small" or (stem == "auto" and image_size < 64)
    if wanted and not _small_stem(model) and stem == "small":
        raise UserError(f"--model {name} has no stem that could be made small: use --stem imagenet.")
    _check_size(model, name, channels, image_size)
    return model.to(memory_format=torch.channels_last)


def card(
    name: str, *, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], image_size: int, stem: str
) -> dict[str, Any]:
    """What is needed to use the weights: `create` builds the model from it; mean and std are of pixels in 0..1."""
    return {
        "model": name,
        "stem": stem,
        "classes": list(classes),
        "channels": len(mean),
        "image_size": image_size,
        "mean": list(mean),
        "std": list(std),
        "timm": timm.__version__,
    }
