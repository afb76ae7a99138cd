"""What a run would be, said before it costs anything: --dry_run."""

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pitstop.config import RecipeConfig
from pitstop.data import ImageSet


class Stream(Protocol):
    @property
    def batch_size(self) -> int: ...
    @property
    def dataset(self) -> ImageSet: ...
    @property
    def largest_micro_batch(self) -> int: ...


def _costs(model: nn.Module, images_BCHW: Tensor) -> tuple[int, int]:
    """(FLOPs of forward and backward, bytes kept for the backward pass) of one batch, in fp32. A multiply-add is two."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(images_BCHW).sum().backward()
    model.zero_grad()
    return counter.get_total_flops(), sum(size for pointer, size in kept.items() if pointer not in weights)


def describe(
    run: Path, config: RecipeConfig, model: nn.Module, stream: Stream, total_steps: int, shape: dict[str, Any]
) -> str:
    """The resolved config, steps, parameters, FLOPs, memory and disk, as text. Writes nothing."""
    data, device = stream.dataset, next(model.parameters()).device
    batch = 4
    flops, activation_bytes = _costs(model, torch.zeros(batch, data.channels, data.size, data.size, device=device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state_bytes = 4 * parameters * 2  # weights and momentum, fp32
    halves = 1 if shape["precision"] == "fp32" else 2
    memory = {
        "weights, gradients, momentum": 4 * parameters * 3,
        f"activations of {stream.largest_micro_batch} images": activation_bytes / batch / halves * stream.largest_micro_batch,
        "training images": data.images_NCHW.nbytes,
    }
    disk = run.parent
    while not disk.exists():
        disk = disk.parent
    lines = [f"{run}: nothing was started (--dry_run)", "", "config"]
    lines += [f"  {name:18} {value}" for name, value in config.model_dump(mode="json").items()]
    lines += ["", "machine"] + [f"  {name:18} {value}" for name, value in shape.items() if value is not None]
    lines += [
        "",
        "work",
        f"  training images    {len(data):,} of {data.size}x{data.size} pixels in {len(data.classes)} classes",
        f"  steps              {total_steps:,} of {stream.batch_size} images",
        f"  parameters         {parameters:,}",
        f"  FLOPs              {flops / batch / 1e9:.3f} G an image, {flops / batch * stream.batch_size / 1e12:.2f} T a step, "
        f"{flops / batch * stream.batch_size * total_steps / 1e15:.3f} P in all (forward and backward; evaluation apart)",
        "",
        "memory of each process, about",
        *(f"  {size / 1e6:10,.0f} MB  {what}" for what, size in memory.items()),
        f"  {sum(memory.values()) / 1e6:10,.0f} MB  together (libraries apart)",
        "",
        f"disk at {disk.resolve()}",
        f"  {state_bytes * (config.keep + 1) / 1e6 + 4 * parameters / 1e6:10,.0f} MB  needed for {config.keep} checkpoints, "
        "one being written, and the result",
        f"  {shutil.disk_usage(disk).free / 1e6:10,.0f} MB  free",
    ]
    return "\n".join(lines)
