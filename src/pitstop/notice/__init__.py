"""Word from the cloud that this machine will be taken, brought by one thread. Standard library only.

No notice is ever needed: what is saved at intervals is the guarantee, a notice only makes the loss smaller.
"""

from pitstop.notice.clouds import CLOUDS, Provider, find
from pitstop.notice.notice import Notice
from pitstop.notice.watch import Watch

__all__ = ["CLOUDS", "Notice", "Provider", "Watch", "find"]
