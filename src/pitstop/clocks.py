"""Times as people read them, the age of a process, and what of a row of metrics.jsonl depends on the clock."""

import contextlib
import os
import time
from pathlib import Path

# What differs between a run that was interrupted and one that was not: all else is exact.
WALL_CLOCK_FIELDS = (
    *("time", "images_per_second", "seconds"),
    *("goodput", "cost", "gpu_utilization", "gpu_memory_gb"),
)


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`; of a second only what is whole."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def process_age(process: int | str = "self") -> float:
    """Seconds since this process began: its imports cost as much as its steps. 0 where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0
