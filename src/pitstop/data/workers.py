"""Processes that read and decode images beside the training."""

import ctypes
import os
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pitstop.data.decode import quiet_pillow
from pitstop.machine import cpu_threads

NumWorkers = int | Literal["auto"]

MOST_WORKERS = 16  # beyond, a disk or the training itself is what is slow
PREFETCH = 2  # pieces of work that each worker is ahead, at most
PIECE_IMAGES = 64
PIECE_BYTES = 16_000_000
SHARED_MEMORY = "/dev/shm"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # <malloc.h>

T = TypeVar("T")
R = TypeVar("R")


def own_group(worker: int) -> None:
    """Gives a DataLoader worker a process group of its own; pass it as `worker_init_fn`.

    torchrun, a terminal and a container's runtime send SIGTERM or SIGINT to a whole group. The training saves and then
    leaves; its workers would die at once, and torch then raises "DataLoader worker is killed by signal" in the main
    thread, in the middle of that save (measured with torch 2.14). In a group of its own a worker goes on until the
    training ends it. One whose parent is killed ends by itself within some five seconds: torch looks for that.
    """
    os.setpgid(0, 0)


def number_of(workers: NumWorkers, device: torch.device) -> int:
    """Processes; for "auto" as many as this one may use cores (affinity, cgroup, its share among the ranks), or a
    quarter of that where the cores train."""
    if workers != "auto":
        return workers
    cores = cpu_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(MOST_WORKERS, max(1, cores // 4 if device.type == "cpu" else cores))


def piece_images(image_bytes: int, workers: int) -> int:
    """How many images a worker hands over at once: few enough for /dev/shm, which in a container may have 64 MB."""
    most = min(PIECE_IMAGES, PIECE_BYTES // image_bytes)
    if workers and os.path.isdir(SHARED_MEMORY):
        disk = os.statvfs(SHARED_MEMORY)
        most = min(most, disk.f_bavail * disk.f_frsize // 2 // (workers * (PREFETCH + 1) * image_bytes))
    return max(1, most)


class _Work(Dataset[R], Generic[T, R]):
    def __init__(self, work: Callable[[T], R]) -> None:
        self._work = work

    def __getitem__(self, item: T) -> R:
        return self._work(item)


def _begin(worker: int) -> None:
    own_group(worker)
    warnings.simplefilter("ignore")  # see `quiet_pillow`
    # glibc would give the memory of each image back to the kernel and have it again, empty, for the next one: a fifth
    # of the time that decoding takes (measured on a virtual machine, where that is dear).
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, KEPT_BYTES)


def _itself(item: Any) -> Any:
    return item


def bring(work: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """`work(item)` of each item, in their order, by so many processes, which are ahead of who reads; 0: here.

    To close the generator, or to let go of it, ends them, at the latest five seconds after what they are at.

    Raises:
        RuntimeError: a worker was killed; besides, whatever `work` raises.
    """
    if workers == 0:
        for item in items:
            with quiet_pillow():
                result = work(item)
            yield result
        return
    with warnings.catch_warnings():
        # Of more workers than cores; of a fork beside threads, for which torch provides.
        warnings.simplefilter("ignore")
        loader = DataLoader(
            _Work(work),
            batch_size=None,
            sampler=items,
            num_workers=workers,
            prefetch_factor=PREFETCH,
            collate_fn=_itself,
            worker_init_fn=_begin,
            multiprocessing_context="fork",  # what the workers read is not copied
            generator=torch.Generator(),  # else the global one is drawn from
        )
        results = iter(loader)
    try:
        yield from results
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise RuntimeError(
            f"{str(error).split('. ')[0]}. It read images; if nobody killed it, the kernel did, as the machine's "
            f"memory was full (`dmesg` says so): with fewer --workers (now {workers}) less is needed."
        ) from error
    finally:
        # What its __del__ does: late if a traceback holds it; and if the garbage collector finds it, without a way to
        # tell the workers, each of which is then waited for five seconds.
        results._shutdown_workers()  # type: ignore[attr-defined]
