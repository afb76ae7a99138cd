"""What evaluations leave on the disk: predictions/, which the report reads, and best/."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pitstop.checkpoint import to_bytes
from pitstop.evaluate import Evaluation
from pitstop.files import new_directory, write_new

NUM_PICTURES = 24  # of each kind


def worth_a_look(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """int64 rows: the most confident mistakes, what was most uncertain, the most confident hits; without doubles."""
    top_N2 = logits_NK.softmax(1).topk(2).values
    right_N = logits_NK.argmax(1) == labels_N
    confidence_N, margin_N = top_N2[:, 0], top_N2[:, 0] - top_N2[:, 1]
    rows = torch.arange(len(labels_N))
    kinds = (
        rows[~right_N][confidence_N[~right_N].argsort(descending=True, stable=True)],
        rows[margin_N.argsort(stable=True)],
        rows[right_N][confidence_N[right_N].argsort(descending=True, stable=True)],
    )
    return torch.tensor([*dict.fromkeys(row for kind in kinds for row in kind[:NUM_PICTURES].tolist())])


def write_predictions(run: Path, evaluation: Evaluation, about: dict[str, Any]) -> None:
    """`predictions/`: logits and labels of an evaluation, and the images worth a look, as the model sees them before
    normalisation. Called by rank 0.

    Args:
        about: {"step", "split", "weights", "classes"}.
    """
    rows_M = worth_a_look(evaluation.logits_NK, evaluation.labels_N)
    images_MCHW = torch.cat(list(evaluation.images.read([(row, row + 1) for row in rows_M.tolist()]))).cpu()
    names = getattr(evaluation.images, "names", None)
    about = about | {"names": [str(names[row]) if names is not None else "" for row in rows_M.tolist()]}
    with new_directory(run / "predictions") as temporary:
        outcome = {"logits_NK": evaluation.logits_NK, "labels_N": evaluation.labels_N}
        write_new(temporary / "predictions.safetensors", to_bytes(outcome, {}))
        write_new(temporary / "pictures.safetensors", to_bytes({"images_MCHW": images_MCHW, "rows_M": rows_M}, {}))
        write_new(temporary / "about.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
