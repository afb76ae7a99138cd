"""Parameter groups and learning rates; a learning rate is a function of the step, so there is no scheduler to save."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop.config import RecipeConfig


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _head(model: nn.Module) -> set[nn.Module]:
    """The modules that turn features into classes, as timm names them: one, or several (a distilled ViT has two)."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    heads = head if isinstance(head, list | tuple | nn.ModuleList) else [head]
    return {module for part in heads for module in part.modules()}


def param_groups(model: nn.Module, weight_decay: float, backbone_lr: float = 1.0) -> list[dict[str, object]]:
    """Weights with decay; norms and biases (what has fewer than two dimensions) without.

    Args:
        backbone_lr: learning rate of all but the head (`get_classifier` of timm's models), as a factor of the head's.
            `set_lr` heeds it. The head's groups come first.
    """
    if backbone_lr == 1.0:
        parts = [(list(model.parameters()), 1.0)]
    else:
        heads = {p for module in _head(model) for p in module.parameters(recurse=False)}
        head, backbone = (
            [p for p in model.parameters() if p in heads],
            [p for p in model.parameters() if p not in heads],
        )
        parts = [(head, 1.0), (backbone, backbone_lr)]
    groups: list[dict[str, object]] = []
    for parameters, lr_scale in parts:
        decayed, plain = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        groups.append({"params": decayed, "weight_decay": weight_decay, "lr_scale": lr_scale})
        groups.append({"params": plain, "weight_decay": 0.0, "lr_scale": lr_scale})
    return groups


def _fused(model: nn.Module) -> dict[str, bool]:
    """Fused on CUDA, where an unfused optimizer makes the scaler wait for the device."""
    fused = next(model.parameters()).device.type == "cuda"
    return {"fused": fused, "foreach": not fused}


def sgd(model: nn.Module, *, weight_decay: float, momentum: float = 0.9, backbone_lr: float = 1.0) -> torch.optim.SGD:
    """SGD with Nesterov momentum. See `param_groups`."""
    groups = param_groups(model, weight_decay, backbone_lr)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=True, **_fused(model))


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), backbone_lr: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019). See `param_groups`."""
    return torch.optim.AdamW(param_groups(model, weight_decay, backbone_lr), lr=0.0, betas=betas, **_fused(model))


def zero_momentum(optimizer: Optimizer) -> None:
    """Gives SGD its momentum and AdamW its moments and counts before the first step, as torch would make them in it: so
    that their state never comes into being halfway, and a parameter that begins frozen has its own like all others.

    A first update that fp16 skips would otherwise leave the fused kernel's new buffers as they were allocated:
    torch 2.14's `_fused_sgd` fills them only if the update takes place.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            elif isinstance(optimizer, torch.optim.AdamW) and not optimizer.state[parameter]:
                optimizer.state[parameter].update(_adam_state(parameter, group))


def _adam_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """What torch's AdamW keeps of a parameter that no step has changed yet, where and in which type it keeps it."""
    fused = bool(group["fused"])
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
    device = parameter.device if fused or group["capturable"] else torch.device("cpu")
    moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    step = torch.zeros((), dtype=dtype, device=device)
    return {"step": step} | {name: torch.zeros_like(parameter) for name in moments}


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """`lr` times the `lr_scale` of each group of `param_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def freeze(model: nn.Module, frozen: bool) -> None:
    """Lets only the head learn, or everything: call it in every step, with what the step alone decides, after an
    evaluation (which ends in training mode) and before the forward pass; and after `session.prepare`, because DDP
    never adds up the gradients of what was frozen when it was made.

    A parameter of the backbone then gets no gradient, so that neither decay nor momentum moves it, and its norms stay
    in evaluation mode: their running statistics do not move either. Steps that freeze come first in a run: once norms
    have learned, their statistics differ from rank to rank, and a frozen norm reads them.
    """
    model = _bare(model)
    if not frozen and all(parameter.requires_grad for parameter in model.parameters()):
        return  # most steps of a run
    heads = _head(model)
    for module in model.modules():
        if module in heads:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.train(not frozen)


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
