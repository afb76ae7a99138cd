"""`pitstop report`: what a run has come to, as one page that needs nothing else, and as figures for a paper. From the
run's files alone, also while it is going."""

from collections.abc import Sequence
from typing import Literal

from pitstop.errors import FINISHED
from pitstop.runs import RunFlags, flags_of


class Report(RunFlags):
    """Writes report/report.html (one file, opens from the disk), figures/ (SVG, PDF, PNG) and summary.json beside it,
    in the directory of a run: finished, stopped, or still going."""

    lang: Literal["en", "zh"] = "en"
    """language of the page and of the figures: English or Chinese"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop report <argv>`.

    Raises:
        UserError: there is no such run, its config.json is damaged, or matplotlib is not installed.
    """
    flags = flags_of(Report, "report", argv)
    path = flags.path
    from pitstop.report.make import make

    print(make(path, flags.lang))
    return FINISHED
