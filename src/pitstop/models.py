"""timm's models, with a stem that fits the images."""

import difflib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from pitstop import pretrained
from pitstop.errors import UserError
from pitstop.files import read_json
from pitstop.randomness import MODEL_INIT, seed_generators

LOOK = ("classes", "channels", "image_size", "stem")  # what `create` takes of a card


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


def _wants_small(stem: str, image_size: int) -> bool:
    return stem == "small" or (stem == "auto" and image_size < 64)


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


def _build(name: str, image_size: int, seed: int, **arguments: Any) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model with weights that depend on `seed` alone, and the arguments that it took. Only models of a fixed
    size (ViT, say) take `img_size`; nothing tells which, before they are asked."""
    fixed = {**arguments, "img_size": image_size}
    seed_generators(MODEL_INIT, seed, device=torch.device("cpu"))
    try:
        return timm.create_model(name, **fixed), fixed
    except TypeError:
        seed_generators(MODEL_INIT, seed, device=torch.device("cpu"))
        return timm.create_model(name, **arguments), arguments


def create(name: str, *, classes: Sequence[str], channels: int, image_size: int, stem: str, seed: int) -> nn.Module:
    """A timm model with fresh weights that depend on `seed` alone, in channels_last, in fp32, on the CPU.

    Args:
        name: as timm has it, with or without the tag of its pretrained weights.
        stem: "small" (3x3, no max-pool), "imagenet" (as timm has it), or "auto": small where the model has such a
            stem and the images are smaller than 64 pixels.

    Raises:
        UserError: no such model or tag, no such stem, or it does not take images of this size.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " timm.list_models() lists them all."
        raise UserError(f"--model {name}: timm {timm.__version__} has no such model.{hint}")
    pretrained.tagged(name)
    model, _ = _build(name, image_size, seed, num_classes=len(classes), in_chans=channels)
    wanted = _wants_small(stem, image_size)
    if wanted and not _small_stem(model) and stem == "small":
        raise UserError(f"--model {name} has no stem that could be made small: use --stem imagenet.")
    _check_size(model, name, channels, image_size)
    return model.to(memory_format=torch.channels_last)


def card(
    name: str,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    stem: str,
    load_size: int | None = None,
) -> dict[str, Any]:
    """What is needed to use the weights: `create` builds the model from it; mean and std are of pixels in 0..1.

    Args:
        load_size: the shorter side to which a photo is resized before its centre of image_size is cut out; None: an
            image is resized to image_size x image_size, without regard to its aspect ratio.
    """
    return {
        "model": name,
        "stem": stem,
        "classes": list(classes),
        "channels": len(mean),
        "image_size": image_size,
        **({} if load_size is None else {"load_size": load_size}),
        "mean": list(mean),
        "std": list(std),
        "timm": timm.__version__,
    }


def card_of(file: Path) -> dict[str, Any]:
    """The card of a file of weights: the .json beside it, or what `pitstop export` has written into it; {}: neither."""
    with suppress(OSError, ValueError, TypeError, KeyError, SafetensorError):
        if file.with_suffix(".json").is_file():
            return dict(read_json(file.with_suffix(".json")))
        with safe_open(file, framework="pt") as opened:
            return dict(json.loads(opened.metadata()["pitstop"]))
    return {}


def load(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model that best/ or final/ of a run holds, and its card: in eval mode, channels_last, fp32, on the CPU.

    Raises:
        UserError: a file is missing or damaged, or timm no longer builds the model that the weights are of.
    """
    about = _read_card(directory / "model.json")
    model = create(about["model"], seed=0, **{name: about[name] for name in LOOK})
    path = directory / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): copy it here again.") from error
    except RuntimeError as error:  # load_state_dict, on names or shapes
        raise UserError(
            f"{path} does not fit {about['model']} of timm {timm.__version__}; it was trained with timm "
            f"{about.get('timm')}: install that. {error}"
        ) from error
    return model.eval(), about


def _read_card(path: Path) -> dict[str, Any]:
    try:
        about = dict(read_json(path))
        lengths = {len(about[name]) for name in ("mean", "std")} | {about["channels"]}
        good = isinstance(about["model"], str) and len(about["classes"]) > 0 and len(lengths) == 1
        if good and isinstance(about["image_size"], int) and about["stem"] in ("auto", "small", "imagenet"):
            return about
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}): copy it here again.") from error
    raise UserError(f"{path} is damaged: it is not what `pitstop.models.card` makes. Copy it here again.")


def plain_arguments(about: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """How timm alone builds the model of a card: the arguments of timm.create_model, and which stem it then needs
    ("small" or "imagenet", timm's own). For models that leave pitstop."""
    sizes = {"num_classes": len(about["classes"]), "in_chans": about["channels"]}
    model, arguments = _build(about["model"], about["image_size"], 0, **sizes)
    small = _wants_small(about["stem"], about["image_size"]) and _small_stem(model)
    return arguments, "small" if small else "imagenet"
