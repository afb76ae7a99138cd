"""tiny.py, on a machine whose wall clock jumps at each look: forth, back, to 1970, and over all ever further back."""

import datetime
import itertools
import runpy
import sys
import time
from pathlib import Path

JUMPS = (0.0, 3600.0, -3600.0, None)  # seconds; None: to 1970
REAL = time.time  # noqa: TID251 - the clock that is put out of order


LOOKS = itertools.count()


def wall_clock() -> float:
    """Of any four looks, however they lie among all others, one is before the one before it."""
    rounds, number = divmod(next(LOOKS), len(JUMPS))
    jump = JUMPS[number]
    return time.monotonic() if jump is None else REAL() + jump - 10_000 * rounds


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return cls.fromtimestamp(wall_clock(), tz)


def main() -> None:
    time.time, time.time_ns = wall_clock, lambda: int(wall_clock() * 1e9)  # noqa: TID251
    for name, module in list(sys.modules.items()):
        if name.startswith("pitstop") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Datetime
    datetime.datetime = Datetime
    sys.argv[0] = str(Path(__file__).parents[1] / "tiny.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
