"""The table of figures, and what they are of."""

from pitstop.report.page import Context, interval, percent
from pitstop.report.read import Predictions, Run
from pitstop.report.scores import Scores
from pitstop.report.words import Words

TTA = ("accuracy_mirror", "accuracy_mirror_shift")
SHARES = ("macro_recall", "macro_f1")


def results(run: Run, predictions: Predictions | None, scores: Scores | None, words: Words) -> Context:
    """The table of figures; what the run itself has written stands below what was computed here."""
    rows: list[tuple[str, str, str]] = []  # name, value, interval
    if scores:
        images, top5 = scores.images, scores.top5
        rows.append((words("accuracy"), percent(scores.accuracy), interval(scores.hits, images)))
        if top5 is not None:
            rows.append((words("top5"), percent(top5), interval(top5 * images, images)))
        rows.append((words("loss"), f"{scores.loss:.4f}", ""))
        for name, share in scores.classes.macro().items():
            rows.append((words("told", name=words("macro"), value=words(name)), percent(share), ""))
        rows.append((words("ece"), percent(scores.calibration.error), ""))
        if scores.auc is not None:
            rows.append((words("auc"), f"{scores.auc:.4f}", ""))
    told = {"accuracy", "loss", "macro_recall", "macro_f1"} if scores else set()
    for name, value in run.result.items():
        if name not in told:
            rows.append((words(name) if name in TTA else name, *_figure(name, value, scores)))
    evaluated = ""
    if predictions and scores:
        evaluated = words(
            "evaluated_last" if predictions.weights == "last" else "evaluated_on",
            weights=predictions.weights,
            step=predictions.step,
            images=f"{scores.images:,}",
            split=words(predictions.split) if predictions.split in ("test", "val") else predictions.split,
        )
    return {"results": rows, "evaluated": evaluated}


def _figure(name: str, value: float, scores: Scores | None) -> tuple[str, str]:
    """(value, interval) of a figure that the run has written: of a recipe's own only its name tells what it is."""
    if name.startswith("accuracy"):
        return percent(value), interval(value * scores.images, scores.images) if scores else ""
    return percent(value) if name in SHARES else f"{value:.4f}", ""
