"""Parameter groups and learning rates; a learning rate is a function of the step, so there is no scheduler to save."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from pitstop.config import RecipeConfig


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights with decay; norms and biases (what has fewer than two dimensions) without."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def sgd(model: nn.Module, *, weight_decay: float, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with Nesterov momentum; fused on CUDA, where an unfused optimizer makes the scaler wait for the device."""
    fused = next(model.parameters()).device.type == "cuda"
    groups = param_groups(model, weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=True, fused=fused, foreach=not fused)


def zero_momentum(optimizer: Optimizer) -> None:
    """Gives SGD its momentum before the first step, so that its state never comes into being halfway.

    A first update that fp16 skips would otherwise leave the fused kernel's new buffers as they were allocated:
    torch 2.14's `_fused_sgd` fills them only if the update takes place.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def triangle(progress: float, *, start: float = 0.2, peak: float = 0.2) -> float:
    """From `start` up to 1 at `peak` of the run, then down to 0, as cifar10-zoo's resnet18 (Keller Jordan) has it."""
    return start + (1 - start) * progress / peak if progress < peak else (1 - progress) / (1 - peak)


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (SGDR, Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(config: RecipeConfig, step: int, total_steps: int, steps_per_epoch: float) -> float:
    """The learning rate of one step as --schedule and its flags want it."""
    progress = step / total_steps
    if config.schedule == "triangle":
        return config.peak_lr * triangle(progress)
    if config.schedule == "cosine":
        return config.peak_lr * cosine(progress)
    if config.schedule == "step":
        drops = math.floor(step / steps_per_epoch / config.step_epochs + 1e-9)  # a border that is a step is met by it
        return config.peak_lr * config.step_factor**drops
    return config.peak_lr
