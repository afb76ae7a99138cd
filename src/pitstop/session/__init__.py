"""The life of a run: begin or continue, count steps, record, save, stop, finish."""

from pitstop.session.session import Session

__all__ = ["Session"]
