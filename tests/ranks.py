"""Several gloo ranks of one small function, for tests: forked from a server that has imported torch once."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

# Not the test process itself: its threads would not survive a fork.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel", "pitstop.data", "pitstop.evaluate"])


def _rank(function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world: int, store: str) -> Any:
    import torch

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
        torch.distributed.barrier()  # the first to leave would take the store away from those that still connect
        return result
    finally:
        torch.distributed.destroy_process_group()


def results(world: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120) -> list[Any]:
    """What `function(rank, world, *arguments)` returns on each rank: plain values and numpy arrays, no tensors."""
    with tempfile.TemporaryDirectory() as folder, SERVER.Pool(world) as pool:
        calls = [(function, arguments, rank, world, f"{folder}/store") for rank in range(world)]
        return pool.starmap_async(_rank, calls, chunksize=1).get(timeout_seconds)
