"""Images in memory: where they come from, what identifies them, and in which order they are read."""

from pitstop.data.digits import load_digits
from pitstop.data.images import ImageSet, mean_and_std
from pitstop.data.sources import load
from pitstop.data.stream import Batch, Batches

__all__ = ["Batch", "Batches", "ImageSet", "load", "load_digits", "mean_and_std"]
