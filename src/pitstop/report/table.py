"""The table of a comparison: its rows, and how they are written."""

import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pitstop.clocks import duration

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
         ">": r"\textgreater{}", "[": "{[}", "*": "{*}",  # behind \\ these two would be its arguments
         **{letter: f"\\{letter}" for letter in "&%$#_{}"}}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Runs of one config: a row of the table. A figure that is not known is None.

    Attributes:
        name: the fields in which it differs from the others.
        first: name of the first of them.
        split: of the images that the accuracies are of, "test" or "val"; empty where that is not known.
        runs: how many there are; unfinished: those of them that are not done.
        accuracies: shares, of those that are done; of all, where none is.
        flops: of the forward pass of one image.
        paid_seconds, cost: means over the runs.
    """

    name: str
    first: str
    split: str
    runs: int
    unfinished: int
    accuracies: list[float]
    parameters: int | None
    flops: int | None
    images_per_second: float | None
    latency_seconds: float | None
    paid_seconds: float
    cost: float | None
    currency: str
    complaint: str  # why the model was not measured

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Of the sample (n - 1)."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def _told(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


HEADINGS = ("Model", "Runs", "Accuracy", "Parameters", "FLOPs", "Images/s", "Latency", "Paid time", "Cost")


def _cells(row: Compared) -> list[str]:
    """As people read them."""
    spread = f" ± {100 * row.deviation:.2f}" if row.deviation is not None else ""
    return [
        row.name,
        f"{row.runs} ({row.unfinished} unfinished)" if row.unfinished else str(row.runs),
        _told(row.mean, lambda mean: f"{100 * mean:.2f}{spread} %"),
        _told(row.parameters, lambda count: f"{count / 1e6:.2f} M"),
        _told(row.flops, lambda flops: f"{flops / 1e9:.3f} G"),
        _told(row.images_per_second, lambda speed: f"{speed:,.0f}"),
        _told(row.latency_seconds, lambda latency: f"{1000 * latency:.2f} ms"),
        duration(round(row.paid_seconds)),
        _told(row.cost, lambda cost: f"{cost:.2f} {row.currency}"),
    ]


def markdown(rows: Sequence[Compared]) -> str:
    def escaped(cell: str) -> str:
        return MARKDOWN.sub(r"\\\1", " ".join(cell.split()))

    lines = [
        HEADINGS,
        ["---", *["---:"] * (len(HEADINGS) - 1)],
        *([escaped(cell) for cell in _cells(row)] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Sequence[Compared]) -> str:
    """A tabular for the package booktabs."""

    def escaped(cell: str) -> str:
        text = "".join(LATEX.get(letter, letter) for letter in " ".join(cell.split()))
        return text.replace("±", r"$\pm$")

    body = [[escaped(cell) for cell in line] for line in (HEADINGS, *map(_cells, rows))]
    table = [" & ".join(line) + r" \\" for line in body]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}"
    return "\n".join([begin, r"\toprule", table[0], r"\midrule", *table[1:], r"\bottomrule", r"\end{tabular}", ""])


def as_csv(rows: Sequence[Compared]) -> str:
    """Plain numbers: shares, seconds. What is not known is empty."""
    fields = (
        "parameters",
        "flops",
        "images_per_second",
        "latency_seconds",
        "paid_seconds",
        "cost",
        "currency",
        "split",
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "runs", "unfinished", "accuracy_mean", "accuracy_deviation", *fields])
    for row in rows:
        values = [getattr(row, name) for name in fields]
        writer.writerow([row.name, row.runs, row.unfinished, row.mean, row.deviation, *values])
    return file.getvalue()
