"""Processes that bring batches: how a DataLoader starts them so that they outlive the last save."""

import os


def own_group(worker: int) -> None:
    """Gives a DataLoader worker a process group of its own; pass it as `worker_init_fn`.

    torchrun, a terminal and a container's runtime send SIGTERM or SIGINT to a whole group. The training saves and then
    leaves; its workers would die at once, and torch then raises "DataLoader worker is killed by signal" in the main
    thread, in the middle of that save (measured with torch 2.14). In a group of its own a worker goes on until the
    training ends it. One whose parent is killed ends by itself within some five seconds: torch looks for that.
    """
    os.setpgid(0, 0)
