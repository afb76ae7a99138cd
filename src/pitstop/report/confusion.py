"""`python -m pitstop.report.confusion RUN` draws predictions/confusion.png, which a tracker shows with a row."""

import sys
from functools import partial
from pathlib import Path

from pitstop.report import figures
from pitstop.report.read import read_predictions
from pitstop.report.scores import confusion
from pitstop.report.style import Press
from pitstop.report.words import Words


def draw(run: Path) -> None:
    """Raises UserError if predictions/ is damaged."""
    found = read_predictions(run)
    assert found is not None, "it was written just now"
    confusion_KK = confusion(found.logits_NK.argmax(1), found.labels_N, len(found.classes))
    press = Press(run / "predictions", Words("en"), found.classes)
    press.files("confusion", partial(figures.confusion, confusion_KK), kinds=("png",))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
