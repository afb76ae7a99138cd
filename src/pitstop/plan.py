"""What a run would be, said before it costs anything: --dry_run."""

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pitstop.config import RecipeConfig


class Images(Protocol):
    """What is asked of a data set; `pitstop.data.ImageSet` and `PhotoSet` are two."""

    def __len__(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def resident_bytes(self) -> int: ...


class Stream(Protocol):
    """What is asked of the batches: `pitstop.data.Batches`, or whatever else counts in global batches."""

    micro_batch: int

    @property
    def batch_size(self) -> int: ...
    @property
    def dataset(self) -> Images: ...
    @property
    def epoch_length(self) -> int: ...
    @property
    def largest_micro_batch(self) -> int: ...
    def total_steps(self, epochs: float) -> int: ...


def _costs(model: nn.Module, images_BCHW: Tensor) -> tuple[int, int]:
    """(FLOPs of forward and backward, bytes kept for the backward pass) of a batch in fp32; a multiply-add is two."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(images_BCHW).sum().backward()
    return counter.get_total_flops(), sum(size for pointer, size in kept.items() if pointer not in weights)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path.resolve()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _work(
    model: nn.Module, stream: Stream, total_steps: int, value_bytes: int
) -> tuple[dict[str, str], dict[str, str]]:
    """What there is to compute, and the memory that it takes, by name."""
    data, device = stream.dataset, next(model.parameters()).device
    batch, largest = 4, stream.largest_micro_batch
    flops, activation_bytes = _costs(model, torch.zeros(batch, data.channels, data.size, data.size, device=device))
    image_gflops, images = flops / batch / 1e9, stream.batch_size * total_steps
    weight_bytes = _weight_bytes(model)
    memory = {
        "weights, gradients, momentum": 3 * weight_bytes,
        f"activations of {largest} images": activation_bytes / batch * largest * value_bytes / 4,
        "training images": data.resident_bytes,
    }
    memory["together, libraries apart"] = sum(memory.values())
    work = {
        "training images": f"{len(data):,}, {data.size}x{data.size} pixels, {len(data.classes)} classes",
        "steps": f"{total_steps:,} of {stream.batch_size} images",
        "parameters": f"{weight_bytes // 4:,}",
        "FLOPs, forward and backward": f"{image_gflops:.3f} G an image, {image_gflops * images / 1e6:.3f} P in all",
    }
    return work, {what: _megabytes(size) for what, size in memory.items()}


def _weight_bytes(model: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def disk(run: Path, keep: int, state_bytes: int, model: nn.Module) -> dict[str, str]:
    """What the run is going to write, and what is free there, by name."""
    checkpoints, place = keep + 1, _existing(run)  # one is being written while the others are kept
    return {
        f"{checkpoints} checkpoints and the result": _megabytes(checkpoints * state_bytes + _weight_bytes(model)),
        f"free at {place}": _megabytes(shutil.disk_usage(place).free),
    }


def describe(
    run: Path,
    config: RecipeConfig,
    model: nn.Module,
    stream: Stream,
    total_steps: int,
    shape: dict[str, Any],
    state_bytes: int,
) -> str:
    """The resolved config, steps, parameters, FLOPs, memory and disk, as text. Writes nothing.

    Args:
        state_bytes: of a checkpoint.
    """
    work, memory = _work(model, stream, total_steps, value_bytes=4 if shape["precision"] == "fp32" else 2)
    tables = {
        "config": config.model_dump(mode="json"),
        "machine": {name: value for name, value in shape.items() if value is not None},
        "work": work,
        "memory of each process, about": memory,
        "disk": disk(run, config.keep, state_bytes, model),
    }
    lines = [f"{run}: nothing was started (--dry_run)"]
    for title, rows in tables.items():
        lines += ["", title, *(f"  {name:32} {value}" for name, value in rows.items())]
    return "\n".join(lines)
