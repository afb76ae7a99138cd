"""Times as people read them, and what of a row of metrics.jsonl depends on the clock."""

# What differs between a run that was interrupted and one that was not: all else is exact.
WALL_CLOCK_FIELDS = (
    *("time", "images_per_second", "seconds"),
    *("goodput", "cost", "gpu_utilization", "gpu_memory_gb"),
)


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`; of a second only what is whole."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
