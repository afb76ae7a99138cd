"""Curves elsewhere: the rows of metrics.jsonl, sent once and in order to W&B or another tracker. No torch here."""

from pitstop.curves.about import About, Target, target_of
from pitstop.curves.other_run import require
from pitstop.curves.recorder import Recorder
from pitstop.curves.rows import Rows, covered_bytes
from pitstop.curves.wandb_run import upload

__all__ = ["About", "Recorder", "Rows", "Target", "covered_bytes", "require", "target_of", "upload"]
