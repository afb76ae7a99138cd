"""Downloads that end: continued after a cut, verified, once for all processes, with the price of the wait. No torch."""

from pitstop.download.arrival import Arrival
from pitstop.download.checksum import Checksum
from pitstop.download.known import KNOWN, KnownFile, KnownSet, bring
from pitstop.download.transfer import DownloadError, Remote, download

__all__ = ["KNOWN", "Arrival", "Checksum", "DownloadError", "KnownFile", "KnownSet", "Remote", "bring", "download"]
