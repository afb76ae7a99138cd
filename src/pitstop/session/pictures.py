"""Pictures of a run: predictions/, samples/, and what rows of metrics.jsonl say of them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pitstop.checkpoint import to_bytes
from pitstop.evaluate import Evaluation
from pitstop.files import fsync_directory, new_directory, write_new
from pitstop.launcher import OUTCOME

NUM_PICTURES = 24  # of each kind
NUM_SHOWN = 8  # of each kind, in the last row
NUM_AUGMENTED = 16
FIGURE_SECONDS = 60.0
Media = dict[str, list[dict[str, str]]]  # {name: [{"path": from the run's directory, "caption"}]}


def worth_a_look(logits_NK: Tensor, labels_N: Tensor, most: int = NUM_PICTURES) -> Tensor:
    """int64 rows: the most confident mistakes, what was most uncertain, the most confident hits; without doubles.

    Args:
        most: of each kind.
    """
    top_N2 = logits_NK.softmax(1).topk(2).values
    right_N = logits_NK.argmax(1) == labels_N
    confidence_N, margin_N = top_N2[:, 0], top_N2[:, 0] - top_N2[:, 1]
    rows = torch.arange(len(labels_N))
    kinds = (
        rows[~right_N][confidence_N[~right_N].argsort(descending=True, stable=True)],
        rows[margin_N.argsort(stable=True)],
        rows[right_N][confidence_N[right_N].argsort(descending=True, stable=True)],
    )
    return torch.tensor([*dict.fromkeys(row for kind in kinds for row in kind[:most].tolist())])


def write_predictions(run: Path, evaluation: Evaluation, about: dict[str, Any], *, shown: bool = False) -> Media:
    """`predictions/`: logits and labels of an evaluation, and the images worth a look, as the model sees them before
    normalisation. Called by rank 0.

    Args:
        about: {"step", "split", "weights", "classes"}.
        shown: some of the images also as predictions/samples/*.png; returns what a row says of them.

    Raises:
        OSError: the disk does not take them.
    """
    rows_M = worth_a_look(evaluation.logits_NK, evaluation.labels_N)
    images_MCHW = torch.cat(list(evaluation.images.read([(row, row + 1) for row in rows_M.tolist()]))).cpu()
    names = getattr(evaluation.images, "names", None)
    captions = _captions(evaluation, about["classes"]) if shown and images_MCHW.shape[1] in (1, 3) else {}
    about = about | {"names": [str(names[row]) if names is not None else "" for row in rows_M.tolist()]}
    with new_directory(run / "predictions") as temporary:
        outcome = {"logits_NK": evaluation.logits_NK, "labels_N": evaluation.labels_N}
        write_new(temporary / "predictions.safetensors", to_bytes(outcome, {}))
        write_new(temporary / "pictures.safetensors", to_bytes({"images_MCHW": images_MCHW, "rows_M": rows_M}, {}))
        write_new(temporary / "about.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
        if captions:
            image_CHW_by_row = dict(zip(rows_M.tolist(), images_MCHW, strict=True))
            (temporary / "samples").mkdir()
            for number, row in enumerate(captions):
                write_new(temporary / _sample(number), png(image_CHW_by_row[row]))
            fsync_directory(temporary / "samples")
    shots = [{"path": f"predictions/{_sample(i)}", "caption": text} for i, text in enumerate(captions.values())]
    return {"predictions": shots} if shots else {}


def _sample(number: int) -> str:
    return f"samples/{number:02}.png"


def _captions(evaluation: Evaluation, classes: list[str]) -> dict[int, str]:
    """`cat, taken for dog (98 %)` by row of the evaluation: the first few of each kind of `worth_a_look`."""
    rows_S = worth_a_look(evaluation.logits_NK, evaluation.labels_N, NUM_SHOWN)
    confidence_S, said_S = evaluation.logits_NK[rows_S].softmax(1).max(1)
    captions = {}
    for row, said, confidence in zip(rows_S.tolist(), said_S.tolist(), confidence_S.tolist(), strict=True):
        true = int(evaluation.labels_N[row])
        taken = f", taken for {classes[said]}" if said != true else ""
        captions[row] = f"{classes[true]}{taken} ({100 * confidence:.0f} %)"
    return captions


def png(image_CHW: Tensor) -> bytes:
    """A uint8 image of one or three channels as a file."""
    pixels_HWC, file = image_CHW.permute(1, 2, 0).contiguous().numpy(), io.BytesIO()
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(file, "PNG")
    return file.getvalue()


def beside(seconds: float, *words: str) -> str:
    """Runs `python -m <words>` in a process of its own, so that its memory and its errors are. Returns why it failed,
    or nothing."""
    argv = [sys.executable, "-m", *words]
    env = {**os.environ, OUTCOME: ""}  # our word to the launcher stands, whatever becomes of it
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stdout or done.stderr).strip().splitlines()[-1:]
    return "" if done.returncode == 0 else " ".join(said) or f"exit code {done.returncode}"


class Samples:
    """The first images with which the model is trained, as it sees them, in samples/: once in the life of a run.

    An owner of state: each checkpoint says how many there are, so the first row names them whichever attempt writes it.

    Args:
        every: steps between two rows.
    """

    def __init__(self, run: Path, every: int, say: Callable[[str], None]) -> None:
        self._run, self._every, self._say = run, every, say
        self._number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._number = int(state.get("images", 0))  # an older checkpoint has none

    def media(self, step: int) -> dict[str, Media]:
        """What the row of this step says of them: only the first row does."""
        if step > self._every or not self._number:
            return {}
        return {"media": {"augmented": [{"path": _sample(number)} for number in range(self._number)]}}

    def look(self, model: nn.Module) -> None:
        """The run begins: what first goes through the model is kept."""

        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if module.training:
                hook.remove()
                self._keep(inputs[0] if inputs else None)

        hook = model.register_forward_pre_hook(see)

    def _keep(self, images: Any) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            return  # a recipe of another kind
        pixels_BCHW = stretched(images[:NUM_AUGMENTED].detach().cpu().float())
        try:
            with new_directory(self._run / "samples") as temporary:
                for number, pixels_CHW in enumerate(pixels_BCHW):
                    write_new(temporary / Path(_sample(number)).name, png(pixels_CHW))
        except OSError as error:  # they are for looking at
            self._say(f"samples/ was not written: {error.strerror}")
        else:
            self._number = len(pixels_BCHW)


def stretched(images_BCHW: Tensor) -> Tensor:
    """uint8: normalised images made visible, by the least and the greatest value of each channel of the batch."""
    low_C, high_C = images_BCHW.amin((0, 2, 3), keepdim=True), images_BCHW.amax((0, 2, 3), keepdim=True)
    return ((images_BCHW - low_C) * (255 / (high_C - low_C).clamp(min=1e-12))).round().to(torch.uint8)
