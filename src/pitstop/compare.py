"""`pitstop compare RUN RUN...`: a table of what runs have come to, those that differ only in their seed as one row."""

import csv
import io
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pitstop.errors import FINISHED, UserError
from pitstop.files import canonical_json
from pitstop.report import account
from pitstop.report.read import Run, number, read
from pitstop.runs import Flags, find_run

OF_THE_SEED = ("seed",)
NAMED_FIRST = ("model", "data", "recipe")
NOT_NAMED = ("code", "data_set")  # long, and told by other fields
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
         ">": r"\textgreater{}", "[": "{[}", "*": "{*}",  # behind \\ these two would be its arguments
         **{letter: f"\\{letter}" for letter in "&%$#_{}"}}  # fmt: skip


class Compare(Flags):
    """Compares runs, those that differ only in their seed as one row: accuracy (mean and standard
    deviation), parameters, FLOPs, training speed, latency, paid time and cost. Name the runs first."""

    runs: str
    """names of runs below --runs_dir, or paths to their directories"""
    format: Literal["markdown", "csv", "latex"] = "markdown"
    """of the table on stdout; csv has plain numbers in seconds and shares"""
    latency: bool = False
    """measure how long an image takes on this machine, with final/ or best/"""
    figure: str = ""
    """folder for the figure accuracy.svg, .pdf and .png"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop compare <argv>`.

    Raises:
        UserError: one of the runs does not exist or is damaged, or the figure cannot be drawn.
    """
    from pitstop.flags import LOOKS_LIKE_A_FLAG, parse

    first = next((index for index, word in enumerate(argv) if LOOKS_LIKE_A_FLAG.match(word)), len(argv))
    joined = ["\n".join(argv[:first])] if first else []  # the parser has one place for them all
    flags = parse(Compare, [*joined, *argv[first:]], words=("runs",), program="pitstop compare")
    paths = [find_run(name, flags.runs_dir) for name in flags.runs.splitlines()]
    rows = compare([read(path) for path in dict.fromkeys(paths)], latency=flags.latency)
    print({"markdown": markdown, "csv": as_csv, "latex": latex}[flags.format](rows), end="")
    for line in notes(rows, flags.latency):
        print(f"\n{line}", file=sys.stdout if flags.format == "markdown" else sys.stderr)
    if flags.figure:
        _draw(rows, Path(flags.figure))
    return FINISHED


@dataclass(frozen=True)
class Compared:
    """Runs of one config: a row of the table. A figure that is not known is None.

    Attributes:
        name: the fields in which it differs from the others.
        runs: how many there are; unfinished: those of them that are not done.
        accuracies: shares, of those that are done; of all, where none is.
        flops: of the forward pass of one image.
        paid_seconds, cost: means over the runs.
    """

    name: str
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


def compare(runs: Sequence[Run], latency: bool = False) -> list[Compared]:
    """A row for each config, in the order in which they are first named."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(canonical_json(_without_seed(run)), []).append(run)
    names = _names([group[0] for group in groups.values()])
    return [_row(name, group, latency) for name, group in zip(names, groups.values(), strict=True)]


def _without_seed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.definition.items() if name not in OF_THE_SEED}


def _names(firsts: Sequence[Run]) -> list[str]:
    """By the fields in which the configs differ, the model always named; else by the names of the runs."""
    definitions = [_without_seed(run) for run in firsts]
    keys = list(dict.fromkeys([*NAMED_FIRST, *(key for definition in definitions for key in definition)]))
    differ = [key for key in keys if key not in NOT_NAMED and len({repr(one.get(key)) for one in definitions}) > 1]
    shown = [key for key in differ if key not in ("model", "recipe")]
    names = [
        " ".join([str(one.get("model", one.get("recipe", "?"))), *(f"{key}={_plain(one.get(key))}" for key in shown)])
        for one in definitions
    ]
    return names if len(set(names)) == len(names) else [run.path.name for run in firsts]


def _plain(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _row(name: str, group: Sequence[Run], latency: bool) -> Compared:
    first = next((run for run in group if run.weights), None)
    parameters = flops = seconds = None
    complaint = "" if first else f"{name}: no final/ or best/ yet, so the model was not measured"
    if first:
        from pitstop.report.measure import measure

        try:
            parameters, flops, seconds = measure(first.path / first.weights, latency)
        except UserError as error:
            complaint = f"{name}: {error}"
    bills = [account.totals(run) for run in group]
    billed = all(bill["price"] for bill in bills) and len({bill["currency"] for bill in bills}) == 1
    done = [run for run in group if run.status.get("state") == "finished"]
    speeds = [speed for run in group if (speed := _speed(run)) is not None]
    return Compared(
        name=name,
        runs=len(group),
        unfinished=len(group) - len(done),
        accuracies=[run.result["accuracy"] for run in done or group if "accuracy" in run.result],
        parameters=parameters,
        flops=flops,
        images_per_second=statistics.fmean(speeds) if speeds else None,
        latency_seconds=seconds,
        paid_seconds=statistics.fmean(bill["paid_seconds"] for bill in bills),
        cost=statistics.fmean(bill["cost"] for bill in bills) if billed else None,
        currency=str(bills[0]["currency"]),
        complaint=complaint,
    )


def _speed(run: Run) -> float | None:
    """Images a second, in the median row: the first ones of each attempt are slower."""
    speeds = [speed for row in run.train if (speed := number(row, "images_per_second")) is not None]
    return statistics.median(speeds) if speeds else None


def _told(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


HEADINGS = ("Model", "Runs", "Accuracy", "Parameters", "FLOPs", "Images/s", "Latency", "Paid time", "Cost")


def _cells(row: Compared) -> list[str]:
    """As people read them."""
    spread = f" ± {100 * row.deviation:.2f}" if row.deviation is not None else ""
    minutes, seconds = divmod(round(row.paid_seconds), 60)
    return [
        row.name,
        f"{row.runs} ({row.unfinished} unfinished)" if row.unfinished else str(row.runs),
        _told(row.mean, lambda mean: f"{100 * mean:.2f}{spread} %"),
        _told(row.parameters, lambda count: f"{count / 1e6:.2f} M"),
        _told(row.flops, lambda flops: f"{flops / 1e9:.3f} G"),
        _told(row.images_per_second, lambda speed: f"{speed:,.0f}"),
        _told(row.latency_seconds, lambda latency: f"{1000 * latency:.2f} ms"),
        f"{minutes // 60}:{minutes % 60:02}:{seconds:02}",
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
    fields = ("parameters", "flops", "images_per_second", "latency_seconds", "paid_seconds", "cost", "currency")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "runs", "unfinished", "accuracy_mean", "accuracy_deviation", *fields])
    for row in rows:
        values = [getattr(row, name) for name in fields]
        writer.writerow([row.name, row.runs, row.unfinished, row.mean, row.deviation, *values])
    return file.getvalue()


def notes(rows: Sequence[Compared], latency: bool) -> list[str]:
    """What must be said with the table."""
    lines = [
        "Accuracy: mean ± standard deviation over runs that differ only in the seed. FLOPs: forward pass of an image."
    ]
    if latency:
        from pitstop.report.measure import measured_on

        lines.append(f"Latency: median, one image at a time, fp32, {measured_on()}.")
    return lines + [row.complaint for row in rows if row.complaint]


def _draw(rows: Sequence[Compared], folder: Path) -> None:
    try:
        from pitstop.report.figures import accuracies
        from pitstop.report.style import Press
    except ImportError as error:
        raise UserError("the figure needs matplotlib: pip install 'pitstop[report]'") from error
    from functools import partial

    from pitstop.report.words import Words

    folder.mkdir(parents=True, exist_ok=True)
    press = Press(folder, Words("en"), tuple(row.name for row in rows))
    press.files("accuracy", partial(accuracies, [row.accuracies for row in rows]))
