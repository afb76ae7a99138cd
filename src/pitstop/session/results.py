"""What becomes of figures beside their rows: predictions/, which the report reads, best/, and advice."""

import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from pitstop import advice
from pitstop.checkpoint import write_final
from pitstop.config import RecipeConfig
from pitstop.evaluate import Evaluation
from pitstop.files import read_json, write_json
from pitstop.selection import Best
from pitstop.session import messages
from pitstop.session.attempt import Attempt
from pitstop.session.pictures import FIGURE_SECONDS, Media, Samples, beside, write_predictions

REPORT_SECONDS = 120.0  # they are paid for
CLASSES_UP_TO = 100  # whose accuracies stand in a row


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
        self.samples = Samples(attempt.run.path, config.log_every, attempt.say)

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

    def look_at_input(self, model: nn.Module, step: int) -> None:
        """The first images that go through the model are looked at: are they what its weights expect? And those of the
        first step of the run are kept."""
        if self._flags.config.compile:  # a hook would have it compiled twice
            return
        if step == 0:
            self.samples.look(model)
        weights = getattr(self._flags.config, "weights", "none")
        if weights == "none":
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
    ) -> dict[str, Any]:
        """The last evaluation of all: of the best weights, where they were kept. final/ is written, then the pictures.
        Returns what else the row of the evaluation has.

        Raises:
            OSError: best/ or final/ cannot be written.
        """
        fields = self.by_class(result)
        if not self._attempt.leads:
            return fields
        self.restored()
        write_final(self._attempt.run.path / "final", judged.state_dict(), card)
        if isinstance(result, Evaluation):
            weights = "best" if self._best else "final"
            media = self._write_predictions(result, step, split, weights, shown=self._fits(result))
            fields |= {"media": media | self._draw_confusion()} if media else {}
        return fields

    def by_class(self, result: Mapping[str, float]) -> dict[str, Any]:
        """`class_accuracy` of a row: {class: share of its images that were right}, of those that have images."""
        if not isinstance(result, Evaluation) or not self._fits(result) or len(self._classes) > CLASSES_UP_TO:
            return {}
        hits_K, support_K, _ = result.counts_K
        counts = zip(self._classes, hits_K.tolist(), support_K.tolist(), strict=True)
        return {"class_accuracy": {name: round(hits / images, 6) for name, hits, images in counts if images}}

    def _fits(self, result: Evaluation) -> bool:
        """Are the classes of the data those of the result? They are not known before `given`."""
        return len(self._classes) == result.logits_NK.shape[1]

    def _draw_confusion(self) -> Media:
        """A picture for the tracker, where there is one and time for it."""
        run = self._attempt.run.path
        wanted = self._flags.config.tracker != "none" and self._attempt.seconds_left() is None
        if not wanted or find_spec("matplotlib") is None:
            return {}
        if why := beside(FIGURE_SECONDS, "pitstop.report.confusion", str(run)):
            self._attempt.say(f"no picture of the confusion matrix was made ({why})")
            return {}
        return {"confusion_matrix": [{"path": "predictions/confusion.png", "caption": "rows: true, columns: said"}]}

    def told(self) -> None:
        """The run is finished: says how, and leaves a report."""
        run = self._attempt.run
        self._attempt.say(messages.finished(run.path, run.status()))
        if not self._flags.config.report or find_spec("matplotlib") is None:
            return
        if why := beside(REPORT_SECONDS, "pitstop.cli", "report", str(run.path)):
            self._attempt.say(f"no report was made ({why}): pitstop report {shlex.quote(str(run.path))}")
        else:
            self._attempt.say(f"  the report    {run.path / 'report' / 'report.html'}")

    def _write_predictions(
        self, result: Evaluation, step: int, split: str, weights: str, *, shown: bool = False
    ) -> Media:
        about = {"step": step, "split": split, "weights": weights, "classes": list(self._classes)}
        try:
            return write_predictions(self._attempt.run.path, result, about, shown=shown)
        except OSError as error:  # they are for looking at: no reason to end a run
            self._attempt.say(f"predictions/ was not written: {error.strerror}")
            return {}

    def _look(self, epoch: float, result: Evaluation) -> None:
        if self._watch:
            hits_K, support_K, _ = result.counts_K
            recall_K = hits_K / support_K  # NaN where there is no image
            self._advise(self._watch.evaluation(epoch, result["accuracy"], recall_K.tolist(), support_K.tolist()))

    def _advise(self, lines: Sequence[str]) -> None:
        for line in lines if self._attempt.leads else ():
            self._attempt.say(f"advice: {line}")
            if self._attempt.run.is_open:
                self._attempt.run.event("advice", text=line)
