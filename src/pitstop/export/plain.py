"""Exported models without pitstop: `pitstop export` runs this file in a process of its own, in which there is none.

    python plain.py FORMAT FILE IMAGES.npy LOGITS.npy

reads uint8 images_NCHW (0..255) and writes float32 logits_MNK, one [N, K] for each of the M ways to load the file. What
it needs to know (model, stem, mean, std) it takes from the file's own metadata: docs/use.md shows the same to people.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ABSENT = {  # what each runtime must do without
    "safetensors": ("pitstop",),
    "pth": ("pitstop",),
    "torchscript": ("pitstop", "timm", "torchvision"),
    "onnx": ("pitstop", "timm", "torchvision", "torch"),
}
RUNTIMES = {
    "safetensors": ("timm",),
    "pth": ("timm", "torchvision"),
    "torchscript": ("torch.jit",),
    "onnx": ("onnxruntime",),
}
TORCHVISION = ("resnet18", "resnet34", "resnet50")


def normalised(images_NCHW: Array, about: dict[str, Any]) -> Array:
    mean_C11, std_C11 = (np.array(about[name], np.float32)[:, None, None] for name in ("mean", "std"))
    images: Array = ((images_NCHW.astype(np.float32) / 255 - mean_C11) / std_C11).astype(np.float32)
    return images


def timm_model(about: dict[str, Any]) -> Any:
    """The model as timm alone builds it; a small stem takes two lines more."""
    import timm
    from torch import nn

    model: Any = timm.create_model(about["model"], **about["timm_arguments"])
    if about["stem"] == "small":
        if isinstance(model.conv1, nn.Conv2d):
            model.conv1 = nn.Conv2d(about["channels"], model.conv1.out_channels, 3, padding=1, bias=False)
        else:
            model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
    return model


def architecture(about: dict[str, Any]) -> str:
    """The name without the tag of the pretrained weights."""
    return str(about["model"]).partition(".")[0]


def fits_torchvision(about: dict[str, Any]) -> bool:
    """Whether torchvision has the same model under the same names: it knows three channels and its own stem."""
    return architecture(about) in TORCHVISION and about["stem"] == "imagenet" and about["channels"] == 3


def computed(model: Any, images_NCHW: Array) -> Array:
    import torch

    with torch.no_grad():
        logits: Array = model.eval()(torch.from_numpy(images_NCHW)).numpy()
    return logits


def from_safetensors(file: Path, images_NCHW: Array) -> Iterator[Array]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["pitstop"])
    model = timm_model(about)
    model.load_state_dict(load_file(file))
    yield computed(model, normalised(images_NCHW, about))


def from_pth(file: Path, images_NCHW: Array) -> Iterator[Array]:
    import torch

    about = json.loads(file.with_suffix(".json").read_text("utf-8"))
    state = torch.load(file, weights_only=True)  # noqa: TID251  the format is torch's: this proves that it loads
    model = timm_model(about)
    model.load_state_dict(state)
    yield computed(model, normalised(images_NCHW, about))
    if fits_torchvision(about):
        model = import_module("torchvision.models").get_model(architecture(about), num_classes=len(about["classes"]))
        model.load_state_dict(state)
        yield computed(model, normalised(images_NCHW, about))


def from_torchscript(file: Path, images_NCHW: Array) -> Iterator[Array]:
    import torch

    extra = {"pitstop.json": ""}
    model = torch.jit.load(file, map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    yield computed(model, normalised(images_NCHW, json.loads(extra["pitstop.json"])))


def from_onnx(file: Path, images_NCHW: Array) -> Iterator[Array]:
    session = import_module("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["pitstop"])
    images = normalised(images_NCHW, about)
    whole = session.run(["logits"], {"images": images})[0]
    one = session.run(["logits"], {"images": images[:1]})[0]  # the size of a batch is free
    yield np.concatenate([one, whole[1:]])


def main(name: str, file: str, images_file: str, logits_file: str) -> None:
    sys.modules.update(dict.fromkeys(ABSENT[name], None))  # type: ignore[arg-type]  # an import of these now fails
    warnings.simplefilter("ignore")  # TorchScript, for one, says that it is going to go
    ways = {
        "safetensors": from_safetensors,
        "pth": from_pth,
        "torchscript": from_torchscript,
        "onnx": from_onnx,
    }
    np.save(logits_file, np.stack(list(ways[name](Path(file), np.load(images_file)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
