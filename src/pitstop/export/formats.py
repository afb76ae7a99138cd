"""The formats of an exported model. A writer takes (model, about, file) and returns the files that it has written."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pitstop.checkpoint import to_bytes
from pitstop.files import canonical_json, write_new


def _to_safetensors(model: nn.Module, about: dict[str, Any], file: Path) -> list[Path]:
    write_new(file, to_bytes(model.state_dict(), about))
    return [file]


def _to_pth(model: nn.Module, about: dict[str, Any], file: Path) -> list[Path]:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(state, file)  # noqa: TID251  the format is torch's; tensors alone, so that weights_only=True reads it
    labels = file.with_suffix(".json")
    write_new(labels, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
    return [file, labels]


def _example(about: dict[str, Any]) -> Tensor:
    """Two images, for a trace: of one, the size of the batch might be taken for a constant."""
    return torch.zeros(2, about["channels"], about["image_size"], about["image_size"])


def _to_onnx(model: nn.Module, about: dict[str, Any], file: Path) -> list[Path]:
    import onnx  # an extra

    # Each torch by the exporter that is its default: the later one of torch 2.6 breaks with today's onnxscript, the
    # earlier one is deprecated in torch 2.9.
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9):
        free: dict[str, Any] = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    else:
        free = {"dynamo": False, "dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own insides
        torch.onnx.export(model, (_example(about),), str(file), external_data=False, verbose=False, **names, **free)
    proto = onnx.load(file)
    onnx.helper.set_model_props(proto, {"pitstop": canonical_json(about)})
    onnx.save(proto, file)
    return [file]


def _to_torchscript(model: nn.Module, about: dict[str, Any], file: Path) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.export; C++ and phones still load it
        plain = model.to(memory_format=torch.contiguous_format)
        traced = torch.jit.trace(plain, _example(about), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file, _extra_files={"pitstop.json": canonical_json(about)})
    return [file]


WRITERS: dict[str, Callable[[nn.Module, dict[str, Any], Path], list[Path]]] = {
    "safetensors": _to_safetensors,
    "pth": _to_pth,
    "onnx": _to_onnx,
    "torchscript": _to_torchscript,
}
