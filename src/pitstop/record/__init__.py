"""What a run leaves on the way: rows of metrics, curves at W&B, a progress bar."""

from pitstop.record.metrics import WALL_CLOCK_FIELDS, Metrics
from pitstop.record.progress import Progress
from pitstop.record.tracker import Tracker

__all__ = ["WALL_CLOCK_FIELDS", "Metrics", "Progress", "Tracker"]
