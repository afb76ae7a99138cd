"""This process among its kind: rank, world, device, Accelerate."""

import os
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils.dataclasses import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.optim import Optimizer

from pitstop import machine
from pitstop.config import RecipeConfig
from pitstop.precision import Precision, resolve

GROUP_SECONDS = "PITSTOP_GROUP_SECONDS"  # environment: after so long a rank that hangs ends the others, and the bill
# Torch before 2.8 keeps the GIL while it waits for gloo's threads to end, and a thread that still holds a tensor of a
# collective waits for the GIL: forever, both. So they get it first. (https://github.com/pytorch/pytorch/pull/154976)
SETTLE_SECONDS = 0.1


def launched_rank() -> int:
    """The rank that the launcher gave this process, before any process group is there."""
    return int(os.environ.get("RANK", "0"))


def launched_world() -> int:
    """How many processes the launcher has started, by what it says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_meeting() -> None:
    """Raises UserError if a launcher has started several processes that cannot meet: each would be alone."""
    if "MASTER_ADDR" not in os.environ:
        machine.check_world(1)


@dataclass(frozen=True)
class Place:
    """Where this process computes, and how."""

    accelerator: Accelerator
    precision: Precision

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        device = self.accelerator.device
        return torch.device(device.type, device.index or 0) if device.type == "cuda" else device

    def shape(self, config: RecipeConfig, optimizer: Optimizer, micro_batch: int) -> dict[str, Any]:
        """See `machine.shape`."""
        return machine.shape(
            self.device,
            self.world,
            precision=self.precision.name,
            micro_batch=micro_batch,
            optimizer=machine.optimizer_kind(optimizer),
            compile=config.compile,
            deterministic=config.deterministic,
        )

    def of_rank_0(self, value: int) -> int:
        """What rank 0 says, on every rank."""
        if self.world == 1:
            return value
        said = torch.tensor(int(value), device=self.device)
        torch.distributed.broadcast(said, src=0)
        return int(said.item())

    def words(self, mine: str) -> str:
        """Those of the first rank that has any, on every rank."""
        if self.world == 1:
            return mine
        said: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(said, mine)
        return next(filter(None, said), "")

    def part(self) -> None:
        """All ranks leave together: the first to exit would make the launcher end rank 0 in the middle of its files."""
        if self.world > 1:
            torch.distributed.barrier()
            time.sleep(SETTLE_SECONDS)
            torch.distributed.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on its device, in DDP if there are several processes."""
        with warnings.catch_warnings():  # torch 2.14 has another name for it, which accelerate does not pass on yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped


def find(config: RecipeConfig) -> Place:
    """Chooses the device, joins the other processes, sets threads and precision.

    Raises:
        UserError: a GPU that torch cannot use, a precision that the device does not have, processes that do not know
            of each other.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; older torch asks for it
    device = machine.choose_device(config.device, machine.nvidia_driver())
    ddp = DistributedDataParallelKwargs(
        # Together these keep DDP from rebuilding its buckets after the first backward pass: it would then add up in
        # another order than after a restart (seen from 3 ranks up).
        find_unused_parameters=True,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    handlers = [ddp, InitProcessGroupKwargs(timeout=timedelta(seconds=float(os.environ.get(GROUP_SECONDS) or "600")))]
    # Precision is ours: see pitstop.precision.
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    machine.check_world(accelerator.num_processes)
    machine.set_up(accelerator.device, deterministic=config.deterministic)
    name = resolve(config.precision, accelerator.device)
    return Place(accelerator, Precision(name, accelerator.device, log_gradients=config.log_gradients))
