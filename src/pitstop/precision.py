"""fp16, bf16 or fp32: what is in force, the loss scale that fp16 needs, and updates that are not applied.

Ours and not accelerate's, which runs fp32 in silence when asked for fp16 on a CPU; and so that one code path serves
CUDA and the tests of the scaler on a CPU.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pitstop.errors import UserError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EMULATE_FP16 = "PITSTOP_TEST_EMULATE_FP16"  # for tests only: float16 autocast and a scaler on a CPU


def _cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """By the processor's flags, never by a timing: the answer must be the same every time."""
    try:
        flags = cpuinfo.read_text().split()
    except OSError:
        return False  # no Linux: fp32, which is right everywhere
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve(wanted: str, device: torch.device) -> str:
    """The precision in force for --precision `wanted`.

    auto on CUDA: bf16 where the GPU computes it natively (compute capability 8.0, Ampere, and later), because its
    range is that of fp32: no loss scale, no skipped step; else fp16 (T4, V100). auto on a CPU: bf16 with AVX512_BF16
    or AMX, else fp32. Not measured on a GPU.

    Raises:
        UserError: fp16 on a CPU, which has no fast path there, or bf16 on a GPU that only emulates it.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if wanted == "bf16" and not native:
            raise UserError(
                f"--precision bf16: {torch.cuda.get_device_name(device)} has no bf16 of its own (that begins with "
                "Ampere): use --precision fp16, or leave it at auto."
            )
        return wanted if wanted != "auto" else "bf16" if native else "fp16"
    if wanted == "fp16" and not os.environ.get(EMULATE_FP16):
        raise UserError(
            "--precision fp16 needs a GPU: on a CPU it is slower than fp32. Use --precision bf16 or fp32, "
            "or leave it at auto."
        )
    return wanted if wanted != "auto" else "bf16" if _cpu_has_bf16() else "fp32"


class Precision:
    """Autocast for the forward pass, the scaled backward pass and the update, in the precision `name`.

    The scaler is there in bf16 and fp32 too, with a scale of 1 that stays (times 1 changes no bit): an update whose
    gradient is not finite is then skipped on the device, in every precision.

    Args:
        log_gradients: fill `figures` in every update.

    Attributes:
        overflow: scalar on the device, not 0 if the gradient of the last update was not finite.
        figures: of the last update, scalars on the device, the same on all ranks: `grad_norm`, of the true gradient
            before it was clipped (infinite or NaN where it overflowed), and in fp16 `loss_scale`, by which it was
            scaled.
    """

    def __init__(self, name: str, device: torch.device, *, log_gradients: bool = False) -> None:
        self.name, self.device = name, device
        self._fixed_scale = None if name == "fp16" else 1.0
        self.scaler = torch.amp.GradScaler(device.type, init_scale=self._fixed_scale or 2.0**16)
        self.overflow = torch.zeros((), device=device)
        self.figures: dict[str, Tensor] = {}
        self._log_gradients = log_gradients

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self.scaler.scale(loss))

    def update(self, model: nn.Module, optimizer: Optimizer, *, clip_grad_norm: float = 0.0) -> None:
        """One update of the weights, and no gradients after it. It is skipped, on the device, if a gradient is not
        finite: in fp16 that is an overflow, and the scale falls.

        Clipping comes after unscaling: the norm is that of the true gradient.
        """
        norm = None
        if clip_grad_norm:
            self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        if self._log_gradients:
            self.figures = self._look(model, norm)
        self.scaler.step(optimizer)
        # What `step` has found, before `update` forgets it; the scaler has no public name for it.
        self.overflow = next(iter(self.scaler._found_inf_per_device(optimizer).values()))
        self.scaler.update(self._fixed_scale)
        optimizer.zero_grad()

    @torch.no_grad()
    def _look(self, model: nn.Module, norm: Tensor | None) -> dict[str, Tensor]:
        """`figures`. The gradients stay as they are: who looks at them must not change a bit."""
        if norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            norm = norm / self._scale()  # they are scaled still
        return {"grad_norm": norm} | ({"loss_scale": self._scale()} if self.name == "fp16" else {})

    def _scale(self) -> Tensor:
        return self.scaler.scale(torch.ones((), device=self.device))

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict() if self.name == "fp16" else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Scale and growth tracker; another precision than before begins with a fresh scale."""
        if state and self.name == "fp16":
            self.scaler.load_state_dict(state)
