"""The figures, each a function of what it shows and of the words it shows it in."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pitstop.report.account import PARTS, Attempt
from pitstop.report.read import Row, Run, number
from pitstop.report.scores import Calibration, Floats, Ints
from pitstop.report.style import ACCENT, CJK, INK, MUTED, PAPER, RULE, WIDTH_INCHES, Text

NUMBERS_UP_TO = 20  # classes whose confusion matrix has its counts written in
NAMES_UP_TO = 40
NAME_LENGTH = 18
LABEL_LENGTH = 2 * NAME_LENGTH  # of a config
ROWS_UP_TO = 12  # attempts that have a bar each
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")


def literal(name: str, length: int = NAME_LENGTH) -> str:
    """A name of the user's for matplotlib, to which $ begins a formula; shortened, if it is long. A Chinese character
    is as wide as two others."""
    kept, room = "", length
    for letter in name:
        room -= 2 if CJK.match(letter) else 1
        if room < 0:
            return kept.replace("$", r"\$") + "…"
        kept += letter
    return kept.replace("$", r"\$")


def _points(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of the rows that have a finite value; curves begin again behind one that has none."""
    pairs = [(number(row, "epoch"), number(row, name)) for row in rows]
    there = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in there], [y if np.isfinite(y) else np.nan for _, y in there]


def stops(run: Run, attempts: Sequence[Attempt]) -> list[float]:
    """The epochs at which later attempts continued."""
    steps = [attempt.first for attempt in attempts[1:] if attempt.first is not None]
    last = max([*run.train, *run.evals], key=lambda row: row["step"], default={})
    per_step = (number(last, "epoch") or 0.0) / last["step"] if last.get("step") else 0.0
    return [step * per_step for step in steps] if per_step else []


def curves(run: Run, stopped: Sequence[float], text: Text) -> Figure:
    """Loss on the left, accuracy on the right."""
    words = text.words
    figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*_points(run.train, "loss"), color=MUTED, linewidth=1.1, label=words("training_loss"))
    left.plot(*_points(run.evals, "loss"), color=ACCENT, marker="o", markersize=3.5, label=words("evaluation_loss"))
    left.set_title(words("loss"))
    left.legend(loc="best", fontsize=8)
    right.plot(*_points(run.evals, "accuracy"), color=ACCENT, marker="o", markersize=3.5)
    right.set_title(words("accuracy"))
    right.yaxis.set_major_formatter(PERCENT)
    for axes in (left, right):
        axes.set_xlabel(words("epoch"))
        _mark(axes, stopped)  # before the limits, which hold them too
        axes.set_xlim(left=0)
    return figure


def learning_rate(run: Run, stopped: Sequence[float], text: Text) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, 1.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_points(run.train, "lr"), color=ACCENT)
    _mark(axes, stopped)
    axes.set_title(text.words("lr_title"))
    axes.set_xlabel(text.words("epoch"))
    axes.set(xlim=(0, None), ylim=(0, None))
    return figure


def _mark(axes: Axes, stopped: Sequence[float]) -> None:
    for epoch in stopped:
        axes.axvline(epoch, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def confusion(confusion_KK: Ints, text: Text) -> Figure:
    """Colour is the share of the row. Written counts, then names, then only numbers, the more classes there are."""
    classes = len(confusion_KK)
    side = min(WIDTH_INCHES, 3.4 + 0.22 * classes)
    figure = Figure(figsize=(side, side - 0.9 if classes < 5 else side), layout="constrained")
    axes = figure.subplots()
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    image_KK4 = np.empty((classes, classes, 4))
    image_KK4[:] = to_rgba(ACCENT)
    image_KK4[..., 3] = np.where(confusion_KK > 0, 0.06 + 0.94 * np.sqrt(share_KK), 0.0)  # a single mistake is seen
    if classes <= NUMBERS_UP_TO:
        axes.pcolormesh(np.arange(classes + 1) - 0.5, np.arange(classes + 1) - 0.5, image_KK4)
        axes.set(ylim=(classes - 0.5, -0.5), aspect="equal")
    else:  # so many cells are smaller as a picture
        axes.imshow(image_KK4, interpolation="nearest")
    if classes <= NUMBERS_UP_TO:
        size = 11 if classes <= 3 else 9 if classes <= 10 else 6.5
        for (row, column), count in np.ndenumerate(confusion_KK):
            if count:
                colour = PAPER if image_KK4[row, column, 3] > 0.6 else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)
    if classes <= NAMES_UP_TO:
        names = [literal(name) for name in text.classes]
        size = 9 if classes <= 15 else 6.5
        long = max(map(len, names)) > (3 if classes > 4 else 6)  # few cells are wide
        axes.set_xticks(
            range(classes), names, fontsize=size, rotation=45 if long else 0, ha="right" if long else "center"
        )
        axes.set_yticks(range(classes), names, fontsize=size)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
    axes.set_xlabel(text.words("said_class"))
    axes.set_ylabel(text.words("true_class"))
    return figure


def roc(curve: tuple[Floats, Floats], text: Text) -> Figure:
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.plot(*curve, color=ACCENT)
    axes.set_xlabel(text.words("false_positives"))
    axes.set_ylabel(text.words("true_positives"))
    axes.set_aspect("equal")
    return figure


def reliability(calibration: Calibration, text: Text) -> Figure:
    """Accuracy over confidence, and below it how many images there are."""
    words = text.words
    figure = Figure(figsize=(3.6, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    upper.plot(calibration.confidence_B, calibration.accuracy_B, color=ACCENT, marker="o", markersize=4)
    upper.set_ylabel(words("accuracy_axis"))
    lower.bar(calibration.confidence_B, calibration.count_B / calibration.count_B.sum(), width=0.04, color=MUTED)
    lower.set_xlabel(words("confidence_axis"))
    lower.set_title(words("images_share"), fontsize=9, fontweight="normal")  # beside it there is no room
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.xaxis.set_major_formatter(PERCENT)
    upper.set_ylim(0, 1.02)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    return figure


TINTS = {  # the steps that counted have the accent; everything else is a shade of the ink, or hatched
    "startup": (MUTED, 0.95, ""),
    "restore": (MUTED, 0.65, ""),
    "steps": (ACCENT, 1.0, ""),
    "redone": (ACCENT, 0.35, "////"),
    "saves": (INK, 0.9, ""),
    "evaluations": (MUTED, 0.4, ""),
    "rest": (MUTED, 0.2, ""),
}


def minutes(attempts: Sequence[Attempt], text: Text) -> Figure:
    """A bar for each attempt, or one for all of them where they are many."""
    words = text.words
    rows = [attempt.seconds for attempt in attempts]
    names = [words("attempt_n", number=attempt.number) for attempt in attempts]
    if len(rows) > ROWS_UP_TO:
        rows, names = [{part: sum(row[part] for row in rows) for part in PARTS}], [words("all_attempts")]
    longest = max((sum(row.values()) for row in rows), default=0.0)
    unit, seconds = ("seconds", 1) if longest < 180 else ("minutes", 60) if longest < 3 * 3600 else ("hours", 3600)
    figure = Figure(figsize=(WIDTH_INCHES, 1.3 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for part in PARTS:
        colour, alpha, hatch = TINTS[part]
        widths = np.array([row[part] / seconds for row in rows])
        if widths.sum() > 0:
            axes.barh(
                *(names, widths, 0.62, left), facecolor=to_rgba(colour, alpha), hatch=hatch, label=words(part),
                edgecolor=ACCENT if hatch else "none", linewidth=0,
            )  # fmt: skip
        left += widths
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(words(unit))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    return figure


def accuracies(accuracies_by_row: Sequence[Sequence[float]], unfinished: Sequence[bool], text: Text) -> Figure:
    """A line for each config: its runs as dots, hollow where none is finished, their mean as a stroke, one standard
    deviation to both sides."""
    figure = Figure(figsize=(WIDTH_INCHES, 0.9 + 0.34 * len(accuracies_by_row)), layout="constrained")
    axes = figure.subplots()
    for index, values in enumerate(accuracies_by_row):
        if values:
            mean = float(np.mean(values))
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.plot([mean - spread, mean + spread], [index, index], color=RULE, linewidth=7, solid_capstyle="butt")
            face = "white" if unfinished[index] else MUTED
            axes.plot(values, [index] * len(values), "o", color=MUTED, markerfacecolor=face, markersize=3.5)
            axes.plot([mean], [index], "|", color=ACCENT, markersize=13, markeredgewidth=2)
    axes.set_xlim(right=min(1.0, axes.get_xlim()[1]))
    for line in axes.lines[1::3] + axes.lines[2::3]:
        line.set_clip_on(False)  # at 100 %
    going = f" ({text.words('unfinished')})"
    names = [literal(name, LABEL_LENGTH) + going * waits for name, waits in zip(text.classes, unfinished, strict=True)]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel(text.words("accuracy_axis"))
    return figure
