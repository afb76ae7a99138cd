"""Moved to `pitstop.locks`."""

from pitstop.locks import exclusive

__all__ = ["exclusive"]
