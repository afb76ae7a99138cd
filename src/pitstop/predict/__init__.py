"""`pitstop predict RUN IMAGES...`: what a trained model says about images that it has not seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from pitstop.errors import UserError
from pitstop.flags import LOOKS_LIKE_A_FLAG, parse
from pitstop.trained import TrainedFlags


class Predict(TrainedFlags):
    """Classifies images with the weights of a run, prepared exactly as its evaluation prepares them.

    The predictions go to stdout, all else to stderr. Exit code 0: every image was classified; 1: some
    were skipped, each of them named; 76: Ctrl-C, what was done is there; 2: nothing was started."""

    images: str
    """an image, a folder (all below it), a .zip or .tar.gz, a pattern like 'photos/**/*.jpg'; as many as you like"""
    top: int = Field(5, ge=1)
    """how many classes to name for each image, the likeliest first; at most all that there are"""
    format: Literal["table", "csv", "json"] = "table"
    """what to write"""
    output: str = ""
    """file to write to, which must not exist yet; default: stdout"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the computation; auto: as the run's own, where this machine has it"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop predict <argv>`."""
    first, more = _split(argv)
    flags = parse(Predict, first, words=("run", "images"), program="pitstop predict")
    weights = flags.weights
    output = Path(flags.output).expanduser() if flags.output else None
    if output is not None and (output.exists() or not output.absolute().parent.is_dir()):
        wrong = "is there already" if output.exists() else "lies in no directory"
        raise UserError(f"--output {output} {wrong}: name a new file in a directory that exists.")
    from pitstop.predict.classify import classify  # torch

    paths = [flags.images, *more]
    return classify(weights, paths, top=flags.top, format=flags.format, output=output, precision=flags.precision)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(all flags, and the first two words without one; the further words, which are paths)."""
    first, words, value = list[str](), list[str](), False
    for word in argv:
        flag = bool(LOOKS_LIKE_A_FLAG.match(word))
        if flag or value or len(words) < 2:
            first.append(word)
        if not flag and not value:
            words.append(word)
        value = flag and "=" not in word
    return first, words[2:]
