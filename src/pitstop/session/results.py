"""What becomes of figures beside their rows: predictions/, which the report reads, best/, and advice."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from pitstop import advice
from pitstop.checkpoint import to_bytes, write_final
from pitstop.config import RecipeConfig
from pitstop.evaluate import Evaluation
from pitstop.files import new_directory, read_json, write_json, write_new
from pitstop.launcher import OUTCOME
from pitstop.selection import Best
from pitstop.session import messages
from pitstop.session.attempt import Attempt

NUM_PICTURES = 24  # of each kind
REPORT_SECONDS = 120.0  # they are paid for


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


class DataSet(Protocol):
    """A set of labelled images; `pitstop.data.ImageSet` and `PhotoSet` are two."""

    @property
    def labels_N(self) -> Tensor: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def to(self, device: torch.device, /) -> Self: ...


class Results:
    """What becomes of the figures of a run beside its rows: best/, predictions/, advice.

    All ranks look for the best, so that they agree; rank 0 writes and speaks.
    """

    def __init__(self, config: RecipeConfig, attempt: Attempt) -> None:
        self._attempt, self._flags = attempt, advice.Flags(config)
        self._watch: advice.Watch | None = None
        self._best: Best | None = None
        self._judged: nn.Module | None = None
        self._card: dict[str, Any] = {}
        self._classes: tuple[str, ...] = ()

    def given(self, train: DataSet, others: Sequence[DataSet], held_out: Any) -> dict[str, Any]:
        """The data are known: says what is to be said of them, before anything is paid for; returns what identifies
        them."""
        self._classes = train.classes
        if not train.labels_N.is_meta:  # of a dry run that would download it
            counts = torch.bincount(train.labels_N.cpu(), minlength=len(train.classes)).tolist()
            self._watch = advice.Watch(self._flags, counts, train.classes)
            self._advise(advice.of_classes(counts, train.classes, self._flags))
        if held_out and self._attempt.leads and self._attempt.run.is_open:
            write_json(self._attempt.run.path / "held_out.json", held_out)
        known = [each.fingerprint for each in (train, *others)]
        alike = all(fingerprint == known[0] for fingerprint in known)
        return known[0] if alike else {"train": known[0], "test": known[-1]}

    def keep(self, best: Best, judged: nn.Module, card: dict[str, Any]) -> None:
        """From now on the best weights of `judged`, the model that is evaluated, are kept in best/."""
        self._best, self._judged, self._card = best, judged, card

    def restored(self) -> None:
        """best/ is what the checkpoint knows: a killed attempt may have come further."""
        if self._best and self._best.weights and self._attempt.leads and self._kept_step() != self._best.step:
            self._write_best(self._best)

    def look_at_input(self, model: nn.Module) -> None:
        """The first images that go through the model are looked at: are they what its weights expect?"""
        weights = getattr(self._flags.config, "weights", "none")
        if weights == "none" or self._flags.config.compile:  # a hook would have it compiled twice
            return

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hook.remove()
            std_C, mean_C = torch.std_mean(inputs[0].detach().float(), dim=(0, 2, 3))
            self._advise(advice.of_input(mean_C.tolist(), std_C.tolist(), weights))

        hook = model.register_forward_pre_hook(look)

    def _kept_step(self) -> int:
        """The step of what is in best/; -1: nothing."""
        path = self._attempt.run.path / "best" / "model.json"
        return int(read_json(path).get("step", -1)) if path.is_file() else -1

    def _write_best(self, best: Best) -> None:
        chosen = {"step": best.step, "metric": best.metric, "value": best.value}
        write_final(self._attempt.run.path / "best", best.weights, self._card | chosen)

    def row(self, epoch: float, row: Mapping[str, float], waited: float = 0.0) -> None:
        """A train row; `waited`: share of the time in which there was no batch."""
        if self._watch:
            self._advise(self._watch.row(epoch, row, waited))

    def evaluated(self, step: int, epoch: float, result: Mapping[str, float]) -> bool:
        """An evaluation at this step. Returns whether to go on; False: for too long nothing was better."""
        if self._best is not None and self._judged is not None:
            better = self._best.look(step, result[self._best.metric], self._judged.state_dict())
            if better and self._attempt.leads:
                try:
                    self._write_best(self._best)
                except OSError as error:  # the weights are in memory, and in the next checkpoint
                    self._attempt.say(f"best/ was not written: {error.strerror}; it will be at the end")
        if isinstance(result, Evaluation) and self._attempt.leads:
            self._write_predictions(result, step, "val" if self._best else "test", "last")
            self._look(epoch, result)
        return self._best is None or not self._best.exhausted

    def finished(
        self, step: int, result: Mapping[str, float], split: str, judged: nn.Module, card: dict[str, Any]
    ) -> None:
        """The last evaluation of all: of the best weights, where they were kept. On rank 0; final/ is written.

        Raises:
            OSError: best/ or final/ cannot be written.
        """
        self.restored()
        write_final(self._attempt.run.path / "final", judged.state_dict(), card)
        if isinstance(result, Evaluation):
            self._write_predictions(result, step, split, "best" if self._best else "final")

    def told(self) -> None:
        """The run is finished: says how, and leaves a report."""
        run = self._attempt.run
        self._attempt.say(messages.finished(run.path, run.status()))
        if not self._flags.config.report or find_spec("matplotlib") is None:
            return
        argv = [sys.executable, "-m", "pitstop.cli", "report", str(run.path)]  # its memory is its own, and its errors
        env = {**os.environ, OUTCOME: ""}  # our word stands, whatever becomes of the report
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=REPORT_SECONDS, check=False)
            made, words = done.returncode == 0, (done.stdout or done.stderr).strip().splitlines()[-1:]
        except (OSError, subprocess.TimeoutExpired) as error:
            made, words = False, [str(error)]
        if not made:
            self._attempt.say(f"no report was made ({' '.join(words)}): pitstop report {shlex.quote(str(run.path))}")
        else:
            self._attempt.say(f"  the report    {run.path / 'report' / 'report.html'}")

    def _write_predictions(self, result: Evaluation, step: int, split: str, weights: str) -> None:
        about = {"step": step, "split": split, "weights": weights, "classes": list(self._classes)}
        try:
            write_predictions(self._attempt.run.path, result, about)
        except OSError as error:  # they are for looking at: no reason to end a run
            self._attempt.say(f"predictions/ was not written: {error.strerror}")

    def _look(self, epoch: float, result: Evaluation) -> None:
        if self._watch:
            confusion_KK = result.confusion_KK
            support_K = confusion_KK.sum(1)
            recall_K = confusion_KK.diagonal() / support_K  # NaN where there is no image
            self._advise(self._watch.evaluation(epoch, result["accuracy"], recall_K.tolist(), support_K.tolist()))

    def _advise(self, lines: Sequence[str]) -> None:
        for line in lines if self._attempt.leads else ():
            self._attempt.say(f"advice: {line}")
            if self._attempt.run.is_open:
                self._attempt.run.event("advice", text=line)
