"""Writes the report of a run: the page, the figures, summary.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from pitstop import __version__
from pitstop.errors import UserError
from pitstop.files import clear_leftovers, new_directory, write_atomic, write_json
from pitstop.report import account, page, results
from pitstop.report.read import Predictions, Run, read, read_predictions
from pitstop.report.words import Language, Words

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise UserError("the report needs matplotlib, which is not installed: pip install 'pitstop[report]'") from error

from pitstop.report import figures, gradcam, pictures
from pitstop.report.scores import Scores, scores
from pitstop.report.style import Draw, Press

CAMS_OF_EACH = 6  # mistakes, hits


@dataclass
class Figures:
    """The figures that were drawn, as SVG for the page."""

    press: Press
    inline: dict[str, str] = field(default_factory=dict)

    def draw(self, name: str, draw: Draw, label: str) -> None:
        self.inline[name] = self.press.both(name, draw, label)


def make(path: Path, language: Language = "en") -> Path:
    """The report of the run in the directory `path`; returns the path of report.html.

    Raises:
        UserError: config.json is damaged, or the report has no place.
    """
    run, words = read(path), Words(language)
    folder = path / "report"
    try:
        folder.mkdir(exist_ok=True)
        clear_leftovers(folder)
    except OSError as error:
        raise UserError(f"the report would lie in {folder}, which cannot be written: {error.strerror}") from error
    predictions, no_predictions = _predictions(run, words)
    scored = scores(predictions.logits_NK, predictions.labels_N) if predictions else None
    attempts, totals, exact = account.attempts(run), account.totals(run), account.exact(run)
    with new_directory(folder / "figures") as figures_folder:
        drawn = Figures(Press(figures_folder, words, predictions.classes if predictions else ()))
        context = _curves(run, attempts, drawn, words)
        if predictions and scored:
            context |= _scored(run, predictions, scored, drawn, words)
        if attempts:
            drawn.draw("minutes", partial(figures.minutes, attempts), words("time_title"))
    table = results.results(run, predictions, scored, words)
    many = len(attempts) > figures.ROWS_UP_TO
    context |= {
        "time_caption": words("time_total_caption" if many else "time_caption", count=len(attempts)),
        "no_predictions": no_predictions,
        "scored": scored is not None,
        "figures": drawn.inline,
        "fonts_missing": drawn.press.lacks_font,
        "letters_missing": drawn.press.lacks_letters and not drawn.press.lacks_font,
        "numbered": drawn.press.lacks_letters or bool(scored and len(scored.confusion_KK) > figures.NAMES_UP_TO),
        "made": words("made", version=__version__, path=path),
        **page.head(run, attempts, totals, scored, words),
        **table,
        **page.time_and_money(run, attempts, totals, words),
        **page.repeat(run, attempts, exact, words),
        "sections": _sections(bool(table["results"]), scored is not None, bool(attempts)),
    }
    write_json(folder / "summary.json", _summary(run, predictions, scored, attempts, totals, exact))
    write_atomic(folder / "report.html", _html(context).encode(errors="replace"))  # names need not be Unicode
    return folder / "report.html"


def _predictions(run: Run, words: Words) -> tuple[Predictions | None, str]:
    """What was predicted, or why that is missing."""
    try:
        found = read_predictions(run.path)
    except UserError as error:
        return None, words("damaged_predictions", why=error)
    return found, "" if found else words("no_predictions")


def _curves(run: Run, attempts: Sequence[account.Attempt], drawn: Figures, words: Words) -> dict[str, Any]:
    stopped = figures.stops(run, attempts)
    if run.train or run.evals:
        drawn.draw("curves", partial(figures.curves, run, stopped), words("curves_title"))
    if run.train:
        drawn.draw("learning_rate", partial(figures.learning_rate, run, stopped), words("lr_title"))
    said = words("stops_count", count=len(stopped)) if stopped else words("no_stops")
    return {"curves_caption": words("curves_caption", stops=said)}


def _scored(run: Run, predictions: Predictions, scored: Scores, drawn: Figures, words: Words) -> dict[str, Any]:
    """Everything that is computed from predictions."""
    drawn.draw("confusion", partial(figures.confusion, scored.confusion_KK), words("confusion_title"))
    drawn.draw("reliability", partial(figures.reliability, scored.calibration), words("calibration_title"))
    if scored.roc:
        drawn.draw("roc", partial(figures.roc, scored.roc), words("roc_title"))
    groups = pictures.groups(predictions, scored)
    for name, group in groups.items():
        if group:
            drawn.press.files(name, partial(pictures.grid, group))
    shown = {name: [_shown(one, predictions, words) for one in group] for name, group in groups.items()}
    return (
        page.errors(predictions, scored, words)
        | {"pictures_by_group": shown}
        | _cams(run, predictions, groups, drawn, words)
    )


def _shown(picture: pictures.Picture, predictions: Predictions, words: Words) -> dict[str, Any]:
    said = words(
        "picture_said", said=predictions.classes[picture.said], share=f"{100 * picture.confidence:.1f}{page.SPACE}%"
    )
    true = words("picture_true", true=predictions.classes[picture.true])
    return {
        "uri": pictures.data_uri(picture.pixels_HWC),
        "alt": " ".join(filter(None, [picture.name, said, true])),
        "said": said,
        "true": true if picture.true != picture.said else "",
        "fine": max(picture.pixels_HWC.shape) > pictures.PNG_UP_TO,
    }


def _cams(
    run: Run, predictions: Predictions, groups: dict[str, list[pictures.Picture]], drawn: Figures, words: Words
) -> dict[str, Any]:
    chosen = groups["mistakes"][:CAMS_OF_EACH] + groups["hits"][:CAMS_OF_EACH]
    if not chosen:
        return {"no_cam": words("no_such_pictures")}
    if predictions.weights == "last":  # of an evaluation on the way
        return {"no_cam": words("no_cam", why=words("not_kept"))}
    try:
        cams = gradcam.grad_cam(run.path, predictions.weights, [picture.pixels_HWC for picture in chosen])
    except UserError as error:
        return {"no_cam": words("no_cam", why=error)}
    hot = [gradcam.heated(one.pixels_HWC, heat_HW) for one, heat_HW in zip(chosen, cams.heat_MHW, strict=True)]
    drawn.press.files("grad_cam", partial(pictures.pairs, chosen, hot))
    height, width = cams.size
    return {
        "cam_caption": words("cam_caption", layer=cams.layer, height=height, width=width),
        "cams": [
            _shown(one, predictions, words) | {"heat": pictures.data_uri(hot_HWC)}
            for one, hot_HWC in zip(chosen, hot, strict=True)
        ],
    }


def _summary(
    run: Run,
    predictions: Predictions | None,
    scored: Scores | None,
    attempts: Sequence[account.Attempt],
    totals: dict[str, Any],
    exact: account.Exact,
) -> dict[str, Any]:
    """The figures of the page for programs; shares in 0..1, times in seconds."""
    told: dict[str, Any] = {}
    if predictions and scored:
        of = scored.classes
        told = {
            "split": predictions.split,
            "images": scored.images,
            "accuracy": scored.accuracy,
            "accuracy_95": scored.interval,
            "loss": scored.loss,
            "macro": of.macro(),
            "ece": scored.calibration.error,
            "auc": scored.auc,
            "classes": [
                {"name": name, "precision": p, "recall": r, "f1": f, "support": n}
                for name, p, r, f, n in zip(
                    predictions.classes,
                    *(values.tolist() for values in (of.precision_K, of.recall_K, of.f1_K, of.support_K)),
                    strict=True,
                )
            ],
            "confusion": scored.confusion_KK.tolist(),
        }
    return {
        "format": 1,
        "run": run.path.name,
        "state": run.status.get("state"),
        "step": run.status.get("step"),
        "total_steps": run.status.get("total_steps"),
        "result": run.result,
        "predictions": told,
        "bill": totals,
        "exact": exact.yes,
        "attempts": [
            {"number": one.number, "steps": [one.first, one.last], "seconds": one.seconds, "cost": one.cost}
            for one in attempts
        ],
    }


def _html(context: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    files = resources.files("pitstop.report")
    css, template = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.html.j2"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    trusted = {name: Markup(svg) for name, svg in context["figures"].items()}  # matplotlib has escaped their text
    return environment.from_string(template).render(context | {"css": Markup(css), "figures": trusted})


def _sections(told: bool, scored: bool, attempts: bool) -> list[str]:
    """Those of the page, in its order."""
    of_predictions = ["errors", "confidence", "pictures"] if scored else []
    return [*(["results"] if told else []), "learning", *of_predictions, *(["time"] if attempts else []), "repeat"]
