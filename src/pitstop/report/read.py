"""What a run has left on the disk, as the report and the comparison read it. Nothing is written, no lock is taken."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitstop.errors import UserError
from pitstop.files import read_json, read_lines
from pitstop.rundir import RunDirectory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run; any of them but config.json may be missing, and is empty then.

    Attributes:
        about: config.json.
        status: status.json; where it cannot be read, what events.jsonl and config.json know of it.
        train, evals: the rows of metrics.jsonl, by kind.
        card: model.json of `weights`.
        weights: "final", "best", or "" where neither is there.
        damaged: the files that are missing or cannot be read, by name, and what is wrong with them.
    """

    path: Path
    about: dict[str, Any]
    status: dict[str, Any]
    train: list[Row]
    evals: list[Row]
    events: list[Row]
    card: dict[str, Any]
    weights: str
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def definition(self) -> dict[str, Any]:
        return dict(self.about["definition"])

    @property
    def config(self) -> dict[str, Any]:
        """The flags of the last attempt."""
        values = self.about.get("config")
        return values if isinstance(values, dict) else {}

    @property
    def result(self) -> dict[str, float]:
        """Of the last evaluation there was: of the finished run, else of the last row."""
        kept = self.status.get("result")
        if isinstance(kept, dict) and kept:
            return {str(name): value for name in kept if (value := number(kept, name)) is not None}
        last = self.evals[-1] if self.evals else {}
        return {name: value for name in last if name not in NOT_FIGURES and (value := number(last, name)) is not None}


NOT_FIGURES = ("kind", "step", "epoch", "seconds", "time")


def number(row: Row, name: str) -> float | None:
    """A figure of a row; NaN and infinities are text in JSON. None: it is not there, or is no number."""
    value = row.get(name)
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read(path: Path) -> Run:
    """Raises UserError if config.json is damaged."""
    directory = RunDirectory(path)
    about, status, events = directory.config(), directory.status(), directory.events()
    rows = [row for row in read_lines(path / "metrics.jsonl") if isinstance(row.get("step"), int)]
    by_kind = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("train", "eval")}
    cards = {weights: _card(path / weights / "model.json") for weights in ("final", "best")}
    weights = next((name for name, card in cards.items() if card), "")
    return Run(
        path=path,
        about=about,
        status=status or _status(events, about.get("config")),
        train=by_kind["train"],
        evals=by_kind["eval"],
        events=events,
        card=cards.get(weights, {}),
        weights=weights,
        damaged=_damaged(path, begun=bool(rows)),
    )


def _status(events: list[Row], config: object) -> Row:
    """What the last lines of events.jsonl say of where the run stands, and config.json of its price."""
    if not events:
        return {}
    known: Row = {name: event[name] for event in events for name in ("step", "total_steps") if name in event}
    last, price = events[-1], config if isinstance(config, dict) else {}
    ended = last.get("event") in ("finished", "stopped", "failed")
    told: Row = {name: last[name] for name in ("attempt", "reason", "result", "split") if name in last}
    return {
        **known,
        **told,
        "state": last["event"] if ended else "running",
        "heartbeat": last.get("time", "?"),
        "price": price.get("price", 0.0),
        "currency": price.get("currency", ""),
    }


def _damaged(path: Path, *, begun: bool) -> dict[str, str]:
    """Of a run that has rows none is missing. A last line without its end is being written, or a crash cut it."""
    damaged: dict[str, str] = {}
    for name in ("status.json", "events.jsonl", "metrics.jsonl"):
        try:
            if name.endswith("l"):
                lines = (path / name).read_bytes().splitlines(keepends=True)
                broken = sum(not _is_object(line) for line in lines if line.endswith(b"\n"))
                if broken:
                    damaged[name] = f"{broken} of {len(lines)} lines cannot be read"
            elif not isinstance(read_json(path / name), dict):
                damaged[name] = "it is no JSON object"
        except FileNotFoundError:
            if begun:
                damaged[name] = "it is missing"
        except (OSError, ValueError) as error:
            damaged[name] = str(error)
    return damaged


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _card(path: Path) -> dict[str, Any]:
    """Empty where it is missing or damaged: it only adds words."""
    try:
        card = read_json(path)
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


@dataclass(frozen=True)
class Predictions:
    """What the model said of each image of the evaluation.

    Attributes:
        logits_NK: float32.
        labels_N: int64.
        images_MHWC: uint8, C = 1 or 3: the pictures that were kept; `rows_M` says of which rows.
        names: of the files of the pictures, "" where there is none.
        split: "test" or "val".
        weights: "final" or "best"; "last" on the way, of which there is no folder.
    """

    logits_NK: "NDArray[np.float32]"
    labels_N: "NDArray[np.int64]"
    classes: tuple[str, ...]
    images_MHWC: "NDArray[np.uint8]"
    rows_M: "NDArray[np.int64]"
    names: tuple[str, ...]
    split: str
    step: int
    weights: str


def read_predictions(run: Path) -> Predictions | None:
    """None where there are none yet.

    Raises:
        UserError: they are damaged, or of another format.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = run / "predictions"
    if not (folder / "about.json").exists():
        return None
    try:
        about = dict(read_json(folder / "about.json"))
        kept, pictures = (load_file(folder / f"{name}.safetensors") for name in ("predictions", "pictures"))
        images_MCHW, rows_M = pictures["images_MCHW"].astype(np.uint8), pictures["rows_M"].astype(np.int64)
        names = tuple(map(str, about.get("names", [])))
        found = Predictions(
            logits_NK=kept["logits_NK"].astype(np.float32),
            labels_N=kept["labels_N"].astype(np.int64),
            classes=tuple(map(str, about["classes"])),
            images_MHWC=images_MCHW.transpose(0, 2, 3, 1),
            rows_M=rows_M,
            names=names if len(names) == len(rows_M) else ("",) * len(rows_M),
            split=str(about["split"]),
            step=int(about["step"]),
            weights=str(about["weights"]),
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged, or of another pitstop: {type(error).__name__}: {error}") from error
    return found


def _check(found: Predictions) -> None:
    """Raises ValueError where the parts do not fit each other."""
    images, classes = found.logits_NK.shape
    labels_N, rows_M = found.labels_N, found.rows_M
    if len(found.classes) != classes or labels_N.shape != (images,) or not images or classes < 2:
        raise ValueError(f"{images} x {classes} logits, {len(labels_N)} labels, {len(found.classes)} class names")
    if labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError("there are labels of no class")
    if len(found.images_MHWC) != len(rows_M) or (len(rows_M) and not 0 <= rows_M.min() <= rows_M.max() < images):
        raise ValueError("there are pictures of no row")
    if len(rows_M) and found.images_MHWC.shape[-1] not in (1, 3):
        raise ValueError(f"pictures of {found.images_MHWC.shape[-1]} channels")
