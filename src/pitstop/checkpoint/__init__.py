"""Checkpoints: complete and verified, or not there; written behind the training."""

from pitstop.checkpoint.disk import FORMAT, Checkpoint, compare, newest, seal, to_bytes, verify, write, write_final
from pitstop.checkpoint.image import Image, Poisoned
from pitstop.checkpoint.writer import Moved, Saved, Writer

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Image",
    "Moved",
    "Poisoned",
    "Saved",
    "Writer",
    "compare",
    "newest",
    "seal",
    "to_bytes",
    "verify",
    "write",
    "write_final",
]
