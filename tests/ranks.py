"""Several gloo ranks of one small function, for tests: forked from a server that has imported torch once."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

# Not the test process itself: its threads would not survive a fork.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel", "pitstop.data", "pitstop.evaluate"])


def _rank(call: tuple[Callable[..., Any], tuple[Any, ...], int, int, str]) -> tuple[int, Any]:
    import torch

    function, arguments, rank, world, store = call
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    # The group ends with the process, which the pool ends when it has all results. To destroy it here hangs with torch
    # before 2.8 (see Place.part), and the first to do so takes the store away from those that still connect.
    return rank, function(rank, world, *arguments)


def results(world: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 120) -> list[Any]:
    """What `function(rank, world, *arguments)` returns on each rank: plain values and numpy arrays, no tensors."""
    with tempfile.TemporaryDirectory() as folder, SERVER.Pool(world) as pool:
        calls = [(function, arguments, rank, world, f"{folder}/store") for rank in range(world)]
        answers = pool.imap_unordered(_rank, calls)  # as they come: an error of one is not kept back by those that wait
        found = dict(answers.next(timeout_seconds) for _ in calls)
        return [found[rank] for rank in range(world)]
