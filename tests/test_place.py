"""Ranks that part."""

import sys
from types import SimpleNamespace

import torch
from ranks import results

from pitstop.session.place import Place


def part(rank: int, world: int) -> bool:
    """The end of a run: Python has let go of the tensors of every sum, gloo's threads perhaps not yet."""
    sys.setswitchinterval(10)  # seconds: who wants the GIL waits until its holder waits for something
    for _ in range(9):
        torch.distributed.all_reduce(torch.zeros(1000))
    Place(SimpleNamespace(num_processes=world), None).part()
    return torch.distributed.is_initialized()


def test_parting_ranks_do_not_wait_for_ever() -> None:
    """With torch before 2.8 about every other pair did. Three times, because each is a race."""
    for _ in range(3):
        assert results(2, part, timeout_seconds=30) == [False, False]
