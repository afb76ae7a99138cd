"""Images: where they come from, what identifies them, and in which order they are read."""

from pitstop.data.digits import load_digits
from pitstop.data.images import ImageSet, mean_and_std
from pitstop.data.photo_batches import PhotoBatches
from pitstop.data.photo_sources import Photos, load_photos
from pitstop.data.photos import PhotoSet, load_size
from pitstop.data.sources import load
from pitstop.data.stream import Batch, Batches

__all__ = [
    "Batch",
    "Batches",
    "ImageSet",
    "PhotoBatches",
    "PhotoSet",
    "Photos",
    "load",
    "load_digits",
    "load_photos",
    "load_size",
    "mean_and_std",
]
