"""What a run leaves on the way: rows of metrics, a progress bar."""

from pitstop.clocks import WALL_CLOCK_FIELDS
from pitstop.record.metrics import Metrics
from pitstop.record.progress import Progress

__all__ = ["WALL_CLOCK_FIELDS", "Metrics", "Progress"]
