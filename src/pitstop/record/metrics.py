"""metrics.jsonl, the truth: one object a line, `{"kind": "train"|"eval", "step": ...}`, no row double or missing."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pitstop.files import AppendOnly, fsync_directory


class Metrics:
    """Means of what each step reports, a row every `log_every` steps. Nothing is read from the device in between.

    A step's metrics are shares: scalar tensors that add up over the ranks. They are kept one by one and not as a
    running sum, gathered and added in the order of the ranks, in float64: so a row does not depend on when a
    checkpoint was taken.

    Args:
        path: of metrics.jsonl; None on ranks that write nothing.
        world: ranks whose shares are added.
    """

    def __init__(self, path: Path | None, world: int) -> None:
        self._path, self._world = path, world
        self._file: AppendOnly | None = None
        self._gathered: dict[str, list[float]] = {}  # of all ranks, one for each step since the last row
        self._pending: dict[str, list[Tensor]] = {}  # this rank's, not yet read

    def open_at(self, size_bytes: int) -> int:
        """Cuts the file to what the checkpoint covers and opens it. Returns how many bytes are missing (0, if all is
        well)."""
        if self._path is None:
            return 0
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            missing = max(0, size_bytes - os.fstat(descriptor).st_size)
            if not missing:
                os.ftruncate(descriptor, size_bytes)
                os.fsync(descriptor)
                fsync_directory(self._path.parent)  # else a checkpoint may outlive the name of the rows that it counts
        finally:
            os.close(descriptor)
        self._file = AppendOnly(self._path)
        return missing

    def flush(self) -> int:
        """Gives the rows to the system. Returns the length of the file in bytes; OSError if the disk is full."""
        return 0 if self._file is None else self._file.flush()

    def sync(self) -> None:
        """Makes the rows durable: may wait for the disk, and may be called beside the training."""
        if self._file is not None:
            self._file.sync()

    def add(self, shares: dict[str, Tensor]) -> None:
        for name, share in shares.items():
            self._pending.setdefault(name, []).append(share)

    def _gather(self) -> None:
        """Reads what is pending from the device: the only host synchronisation. Called by all ranks or none."""
        for name, shares in self._pending.items():
            mine = torch.stack(shares).double()
            if self._world > 1:
                everyone = [torch.empty_like(mine) for _ in range(self._world)]
                torch.distributed.all_gather(everyone, mine)
                mine = torch.stack(everyone).cpu().cumsum(0)[-1]  # one after the other, in the order of the ranks
            self._gathered.setdefault(name, []).extend(mine.tolist())
        self._pending.clear()

    def means(self) -> dict[str, float]:
        """Means over the steps since the last row; the next row begins after them."""
        self._gather()
        result = {name: sum(values) / len(values) for name, values in self._gathered.items()}
        self._gathered.clear()
        return result

    def write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write_row(row)

    def state_dict(self) -> dict[str, Any]:
        """The part of the next row that is known already. Called by all ranks or none."""
        self._gather()
        return {name: list(values) for name, values in self._gathered.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gathered = {name: [float(value) for value in values] for name, values in state.items()}
