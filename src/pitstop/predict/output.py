"""Predictions as a table, as CSV or as JSON, row by row, into stdout or a file that appears whole."""

import csv
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

Guesses = Sequence[tuple[str, float]]  # class and probability (0..1), the likeliest first
Write = Callable[[str], None]


class Form(Protocol):
    """Text of what comes before the rows, of a row, and of what comes after them."""

    def head(self) -> str: ...
    def row(self, name: str, guesses: Guesses) -> str: ...
    def tail(self) -> str: ...


def width(text: str) -> int:
    """Columns of a terminal: two for a Chinese character, none for an accent of its own."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


class Table:
    """For people. The widths are known before the first row, so that rows can be shown as they come."""

    def __init__(self, names: Sequence[str], classes: Sequence[str], top: int) -> None:
        self._name = max(map(width, [*names, "image"]))
        self._class = max(map(width, [*classes, "class"]))
        self._top = top

    def head(self) -> str:
        titles = ["class", *(f"{number}." for number in range(2, self._top + 1))]
        return self._line("image", [f"{padded(title, self._class)}         " for title in titles])

    def row(self, name: str, guesses: Guesses) -> str:
        return self._line(name, [f"{padded(one, self._class)}  {share:7.2%}" for one, share in guesses])

    def tail(self) -> str:
        return ""

    def _line(self, name: str, cells: list[str]) -> str:
        return "  ".join([padded(name, self._name), *cells]).rstrip() + "\n"


class Csv:
    """For spreadsheets: a line for each image."""

    def __init__(self, top: int) -> None:
        self._top = top

    def head(self) -> str:
        pairs = [f"{title}_{number}" for number in range(1, self._top + 1) for title in ("class", "probability")]
        return self._line(["image", *pairs])

    def row(self, name: str, guesses: Guesses) -> str:
        return self._line([name, *(cell for one, share in guesses for cell in (one, f"{share:.6f}"))])

    def tail(self) -> str:
        return ""

    def _line(self, cells: list[str]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        return line.getvalue()


class Json:
    """For programs: one list, an object for each image; a line each, so that it can be read by eye too."""

    def __init__(self) -> None:
        self._before = "\n"

    def head(self) -> str:
        return "["

    def row(self, name: str, guesses: Guesses) -> str:
        predictions = [{"class": one, "probability": round(share, 6)} for one, share in guesses]
        text = self._before + json.dumps({"image": name, "predictions": predictions}, ensure_ascii=False)
        self._before = ",\n"
        return text

    def tail(self) -> str:
        return "\n]\n"


@contextmanager
def destination(output: Path | None) -> Iterator[Write]:
    """What writes text to stdout, or into a file that gets its name when all of it is written, and not if that fails.

    Raises:
        OSError: the file cannot be written; BrokenPipeError: nobody reads stdout any more.
    """
    if output is None:

        def say(text: str) -> None:
            encoding = sys.stdout.encoding or "utf-8"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()

        yield say
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            yield lambda text: print(text, end="", file=file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
