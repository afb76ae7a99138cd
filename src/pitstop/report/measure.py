"""What a model is and how fast it answers on this machine."""

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

WARM_UP = 5
MOST_TIMES = 100
SECONDS = 3.0  # of measuring a model


class Measured(NamedTuple):
    """flops: of the forward pass of one image, a multiply-add being two; latency_seconds: the median of one image."""

    parameters: int
    flops: int
    latency_seconds: float | None


def measure(weights: Path, latency: bool) -> Measured:
    """Of the model in final/ or best/; on the GPU, if there is one, in fp32, one image at a time.

    Raises:
        UserError: the files are missing or damaged.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pitstop import models

    model, card = models.load(weights)
    image_1CHW = torch.zeros(1, card["channels"], card["image_size"], card["image_size"])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image_1CHW)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Measured(parameters, counter.get_total_flops(), _latency(model, image_1CHW) if latency else None)


def _latency(model: Any, image_1CHW: Any) -> float:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, image_1CHW = model.to(device), image_1CHW.to(device)
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < WARM_UP + 3 or (len(times) < WARM_UP + MOST_TIMES and sum(times) < SECONDS):
            begun = time.perf_counter()
            model(image_1CHW)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])


def measured_on() -> str:
    """The device, in words."""
    import torch

    from pitstop.machine import processor_name

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"
