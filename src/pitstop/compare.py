"""`pitstop compare RUN RUN...`: a table of what runs have come to, those that differ only in their seed as one row."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pitstop.errors import FINISHED, UserError
from pitstop.files import canonical_json
from pitstop.report import account
from pitstop.report.read import Run, number, read
from pitstop.report.table import Compared, as_csv, latex, markdown
from pitstop.runs import Flags, find_run

OF_THE_SEED = ("seed",)
NAMED_FIRST = ("model", "data", "recipe")
NOT_NAMED = (  # long and told by other fields, or without effect on the weights
    *("code", "data_set"),
    *("log_every", "eval_every"),
)


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


def compare(runs: Sequence[Run], latency: bool = False) -> list[Compared]:
    """A row for each config, in the order in which they are first named."""
    configs: dict[str, list[Run]] = {}
    for run in runs:
        configs.setdefault(canonical_json(_without_seed(run)), []).append(run)
    groups = [group for config in configs.values() for group in _by_split(config)]
    names = _names([group[0] for group in groups], [_split(group) for group in groups])
    return [_row(name, group, latency) for name, group in zip(names, groups, strict=True)]


def _without_seed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.definition.items() if name not in OF_THE_SEED}


def _split(group: Sequence[Run]) -> str:
    """Of the first that is finished, and tells."""
    told = (run.status.get("split") for run in group if run.status.get("state") == "finished")
    return next((split for split in told if isinstance(split, str)), "")


def _by_split(runs: Sequence[Run]) -> list[list[Run]]:
    """Apart, since accuracies on different images have no mean. What was not judged yet goes with the first."""
    splits = list(dict.fromkeys(filter(None, (_split([run]) for run in runs)))) or [""]
    return [[run for run in runs if (_split([run]) or splits[0]) == split] for split in splits]


def _names(firsts: Sequence[Run], splits: Sequence[str]) -> list[str]:
    """By the fields that all configs have and in which they differ, the model always named; else by the names of the
    runs."""
    definitions = [
        _without_seed(run) | ({"split": split} if split else {}) for run, split in zip(firsts, splits, strict=True)
    ]
    common = [key for key in dict.fromkeys([*NAMED_FIRST, *definitions[0]]) if all(key in one for one in definitions)]
    differ = [key for key in common if key not in NOT_NAMED and len({repr(one[key]) for one in definitions}) > 1]
    shown = [key for key in differ if key not in ("model", "recipe")]
    names = [
        " ".join([str(one.get("model", one.get("recipe", "?"))), *(f"{key}={_plain(one[key])}" for key in shown)])
        for one in definitions
    ]
    for better in ([run.path.name for run in firsts], [str(run.path) for run in firsts]):
        names = names if len(set(names)) == len(names) else better
    return names


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
    billed = all(bill["price"] or bill["cost"] for bill in bills) and len({bill["currency"] for bill in bills}) == 1
    done = [run for run in group if run.status.get("state") == "finished"]
    speeds = [speed for run in group if (speed := _speed(run)) is not None]
    return Compared(
        name=name,
        first=group[0].path.name,
        split=_split(group),
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


def notes(rows: Sequence[Compared], latency: bool) -> list[str]:
    """What must be said with the table."""
    lines = [
        "Accuracy: mean ± standard deviation over runs that differ only in the seed. FLOPs: forward pass of an image."
    ]
    if latency:
        from pitstop.report.measure import measured_on

        lines.append(f"Latency: median, one image at a time, fp32, {measured_on()}.")
    if on_val := [row.name for row in rows if row.split == "val"]:
        lines.append(f"On val, which has chosen the weights, not on a test set: {', '.join(on_val)}.")
    return lines + [row.complaint for row in rows if row.complaint]


def _draw(rows: Sequence[Compared], folder: Path) -> None:
    try:
        from pitstop.report.figures import LABEL_LENGTH, accuracies, literal
        from pitstop.report.style import Press
    except ImportError as error:
        raise UserError("the figure needs matplotlib: pip install 'pitstop[report]'") from error
    from functools import partial

    from pitstop.report.words import Words

    folder.mkdir(parents=True, exist_ok=True)
    names = [row.name for row in rows]
    if len({literal(name, LABEL_LENGTH) for name in names}) < len(names):
        names = [row.first for row in rows]
    press = Press(folder, Words("en"), tuple(names))
    unfinished = [row.unfinished == row.runs for row in rows]
    press.files("accuracy", partial(accuracies, [row.accuracies for row in rows], unfinished))
