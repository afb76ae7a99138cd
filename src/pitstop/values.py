"""Values of flags: what a person may write, checked, and what it means."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> float:
    """`30s`, `10m`, `2h`, `1d`, or a bare number of seconds, as seconds. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(value))
    if match is None:
        raise ValueError("a duration such as 30s, 10m or 2h was expected")
    return float(match[1]) * UNITS[match[2] or "s"]


def duration(value: object) -> str:
    """A duration, as it was written. Raises ValueError."""
    seconds(value)
    return str(value)


def interval(value: object) -> str:
    """`auto`, a duration (`60s`, `10m`) or a number of steps (`200steps`), as it was written. Raises ValueError."""
    text = str(value)
    if text == "auto":
        return text
    match = re.fullmatch(r"(\d+)steps?", text)
    if match is None:
        try:
            if not seconds(text):  # after every step: say 1step
                raise ValueError
        except ValueError:
            raise ValueError("auto, or an interval such as 60s, 10m or 200steps, was expected") from None
    elif int(match[1]) < 1:
        raise ValueError("at least 1 step was expected")
    return text


def run_name(value: str) -> str:
    """One plain name of a directory, or nothing. Raises ValueError."""
    if value and (
        not re.fullmatch(r"\w[\w.+=@-]*", value) or len(value.encode()) > 100 or value in ("archive", "caches")
    ):
        raise ValueError(
            "a name of up to 100 bytes of letters, digits, '.', '_', '-', '+', '=' and '@' was expected, "
            "beginning with a letter or digit (and not 'archive' or 'caches')"
        )
    return value


def directory(value: object) -> Path:
    """A directory, or a place where one can be made; `~` is the home directory. Raises ValueError."""
    if not str(value):
        raise ValueError("a directory was expected")
    path = Path(os.path.expanduser(str(value)))
    nearest = next((place for place in (path, *path.parents) if os.path.exists(place)), path)
    if not os.path.isdir(nearest):
        raise ValueError(f"a directory was expected, but {nearest} is {'a file' if nearest.exists() else 'not there'}")
    return path


def clock(value: object) -> str:
    """A time of the day, `08:00` or `8:00`, or nothing. Raises ValueError."""
    text = str(value)
    if text and not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", text):
        raise ValueError("a time of the day such as 08:00 was expected")
    return text


def worker_count(value: object) -> int | str:
    """`auto`, or a number of processes. Raises ValueError."""
    text = str(value)
    if text != "auto" and not (text.isdecimal() and int(text) <= 256):
        raise ValueError("auto, or a number of processes from 0 to 256, was expected")
    return text if text == "auto" else int(text)


def micro_batch(value: object) -> str:
    """`auto`, 0 (all) or a number of images. Raises ValueError."""
    if not re.fullmatch(r"auto|0|[2-9]|[1-9]\d+", str(value)):
        raise ValueError("auto, 0, or a whole number of at least 2 was expected: one image has no statistics")
    return str(value)


Duration = Annotated[str, BeforeValidator(duration)]
Interval = Annotated[str, BeforeValidator(interval)]
ClockTime = Annotated[str, BeforeValidator(clock)]
Workers = Annotated[int | str, BeforeValidator(worker_count)]
RunName = Annotated[str, AfterValidator(run_name)]
Directory = Annotated[Path, BeforeValidator(directory)]
MicroBatch = Annotated[str, BeforeValidator(micro_batch)]
