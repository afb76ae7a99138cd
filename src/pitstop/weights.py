"""Weights from elsewhere into a model: timm's, torchvision's, those of another run. What did not fit is named."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pitstop import models, pretrained
from pitstop.download.checksum import digest
from pitstop.errors import UserError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # as timm does: the average, if there is one
PREFIXES = ("module.", "_orig_mod.")  # of DDP and of torch.compile
NUM_NAMED, WIDTH = 4, 110
MIN_SHARE = 0.75  # of the numbers but the head: of a resnet18's nearly half fit into a resnet50, by chance
RESNETS: dict[tuple[tuple[int, ...], int], str] = {  # (blocks of each stage, convolutions of a block) -> name
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "resnet101",
    ((3, 8, 36, 3), 3): "resnet152",
}


@dataclass(frozen=True)
class Report:
    """What became of the weights in `file`: names of tensors, `unused` those of the file, the others of the model.
    The fresh ones keep what they were initialised with."""

    file: Path
    sha256: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...]


def bring(model: nn.Module, spec: str, *, name: str, may_write: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Loads what `--weights` names into `model`, a bare timm model called `name`.

    Args:
        spec: "pretrained" (timm's, for `name`), "none", or the path of a file or a run, as `load` takes it.
        may_write: may download. If not, and the pretrained weights are not here, the model stays as it is.

    Returns:
        What identifies the weights, for the definition of the run: their name and SHA-256, but no path.

    Raises:
        UserError: they cannot be had, or do not fit; it says how to go on.
    """
    if spec == "none":
        return {"weights": "none"}
    if spec != "pretrained":
        report = load(model, Path(spec).expanduser(), say=say)
        return {"weights": report.file.name, "sha256": report.sha256}
    if (file := pretrained.find(name, may_write=may_write, say=say)) is None:
        return {"weights": pretrained.source(name), "sha256": "not here yet"}
    known = pretrained.verified(file)
    return {"weights": pretrained.source(name), "sha256": load(model, file, say=say, sha256=known).sha256}


def normalisation(spec: str, *, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that the weights were trained with, of pixels in 0..1, for each of three channels; where the weights
    do not tell (or are "none"), those of timm's for the model called `name`."""
    card = {} if spec in ("none", "pretrained") else _card(spec)
    if not {"mean", "std"} <= card.keys():
        return pretrained.normalisation(name)
    times = 3 if len(card["mean"]) == 1 else 1
    return tuple(card["mean"]) * times, tuple(card["std"]) * times


def stem(wanted: str, spec: str) -> str:
    """The stem that is `wanted`; of "auto" the one for which the weights were made, or "auto" where there are none:
    see `models.create`."""
    if wanted != "auto":
        return wanted
    if spec in ("none", "pretrained"):
        return "auto" if spec == "none" else "imagenet"
    card = _card(spec)
    by_size = "small" if card.get("image_size", 224) < 64 else "imagenet"
    return by_size if card.get("stem", "auto") == "auto" else str(card["stem"])


def load(model: nn.Module, source: Path, *, say: Callable[[str], None], sha256: str = "") -> Report:
    """Loads the weights at `source` into `model`: its tensors of the same name and shape.

    A first convolution for 3 channels is made to fit 1, and the other way round. What does not fit keeps what it was
    initialised with and is said: a head of another size, say.

    Args:
        sha256: of the file, where it is known already.
        source: .safetensors; .pth, .pt or .bin of timm or torchvision; `final/` or `best/` of a run; or the run, of
            which `best/` is taken, else `final/`.

    Raises:
        UserError: there is no such file, it is damaged, it holds code, or it is of another architecture.
    """
    file = _file(source)
    own, state = model.state_dict(), _read(file)
    heads = tuple(f"{name}." for name in _listed(model, "classifier"))
    if _body(_misfits(own, state), heads):
        state = _timms_names(model, state)
    state, adapted = _adapt_channels(model, own, state)
    fresh = _misfits(own, state)
    loaded = [key for key in own if key not in fresh]
    body, misfits = (sum(own[key].numel() for key in _body(keys, heads)) for keys in (own, fresh))
    if body - misfits < MIN_SHARE * body:
        raise UserError(
            f"{file} does not fit the model: of the model's {body:,} numbers (but the head) {body - misfits:,} are "
            f"there, by name and shape. It holds {_looks_like(file, state)}. Give the right --model or other --weights."
        )
    model.load_state_dict({key: state[key] for key in loaded}, strict=False)
    unused = [key for key in state if key not in own or key in fresh]
    report = Report(file, sha256 or digest(file, "sha256"), *map(tuple, (loaded, fresh, unused, adapted)))
    _tell(report, own, state, say)
    return report


def _file(source: Path) -> Path:
    """Raises UserError if there is none."""
    places = [source, *(source / part / "model.safetensors" for part in ("", "best", "final"))]
    if found := next((place for place in places if place.is_file()), None):
        return found
    if source.is_dir():
        unfinished = " This run is not finished." if (source / "checkpoints").is_dir() else ""
        raise UserError(f"{source} has no model.safetensors, nor best/ or final/ with one.{unfinished}")
    raise UserError(
        f"There are no weights at {source}. --weights takes pretrained, none, or the path of a .safetensors or .pth "
        "file, of final/ or best/ of a run, or of the run."
    )


def _read(file: Path) -> dict[str, Tensor]:
    """Name -> tensor, on the CPU. No code in the file is executed."""
    if file.suffix == ".safetensors":
        try:
            return _stripped(load_file(file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged, or no safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of timm's train.py: the flags, plain attributes
            found = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch names no limit to what a damaged or foreign file may raise
        raise UserError(
            f"{file} cannot be read as plain weights ({type(error).__name__}: {str(error)[:100]}). It is damaged, or "
            "holds objects whose loading would execute code: save its state_dict() as .safetensors where you trust it."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} holds no weights: a dictionary of names and tensors was expected.")
    return _stripped({str(key): value for key, value in found.items() if isinstance(value, Tensor)})


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stripped = {}
    for key, value in state.items():
        while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
            key = key.removeprefix(prefix)
        stripped[key] = value
    return stripped


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [key for key, value in own.items() if key not in state or state[key].shape != value.shape]


def _body(keys: Iterable[str], heads: tuple[str, ...] = ()) -> list[str]:
    """Of the keys those that carry what was learned, without the heads and the counters of batch normalisation."""
    return [key for key in keys if not key.startswith(heads) and not key.endswith("num_batches_tracked")]


def _listed(model: nn.Module, trait: str) -> tuple[str, ...]:
    """Modules that timm names in the model's pretrained_cfg: one, several, or none."""
    value = (getattr(model, "pretrained_cfg", None) or {}).get(trait) or ()
    return (value,) if isinstance(value, str) else tuple(value)


def _timms_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Through the function that timm has for weights of other programs or sizes (positions of a ViT, say), if any."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except (KeyError, RuntimeError, AttributeError, ValueError, TypeError):  # written for another architecture
        return state


def _adapt_channels(
    model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """1 for 3 channels and the other way round, so that a grey image gives what it gave: sum, or thirds."""
    adapted = {}
    for key in (f"{name}.weight" for name in _listed(model, "first_conv")):
        if key in own and key in state and own[key].dim() == state[key].dim() == 4:
            weight_OIHW, wanted = state[key], own[key].shape
            if (weight_OIHW.shape[1], wanted[1]) == (3, 1):
                adapted[key] = weight_OIHW.float().sum(1, keepdim=True)
            if (weight_OIHW.shape[1], wanted[1]) == (1, 3):
                adapted[key] = weight_OIHW.float().repeat(1, 3, 1, 1) / 3
    return state | adapted, list(adapted)


def _looks_like(file: Path, state: Mapping[str, Tensor]) -> str:
    if name := _card(str(file)).get("model"):
        return f"a {name}"
    stages = [{key.split(".")[1] for key in state if key.startswith(f"layer{number}.")} for number in range(1, 5)]
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    if all(stages):
        return f"a {RESNETS.get((tuple(map(len, stages)), convolutions), 'residual network')}"
    if (qkv := state.get("blocks.0.attn.qkv.weight")) is not None:
        return f"a vision transformer of width {qkv.shape[-1]}"
    return f"{len(state)} tensors: {_some(list(state))}"


def _card(spec: str) -> dict[str, Any]:
    """What is known of the weights of a run, or of exported ones; nothing, if there are none."""
    with suppress(UserError):  # that the weights are not there, `load` says
        return models.card_of(_file(Path(spec).expanduser()))
    return {}


def _tell(report: Report, own: Mapping[str, Tensor], state: Mapping[str, Tensor], say: Callable[[str], None]) -> None:
    say(f"Weights from {report.file} (SHA-256 {report.sha256[:12]}): {len(report.loaded)} of {len(own)} tensors fit.")
    fresh = [_shapes(key, own, state) for key in report.fresh]
    unused = sorted(_body(set(report.unused) - own.keys()))
    for what, names in (("made to fit the channels", report.adapted), ("begin fresh", fresh), ("unused", unused)):
        if names:  # all of them: the one left out would be the one that matters
            lines = textwrap.wrap(f"{what} ({len(names)}): {', '.join(names)}", WIDTH, break_long_words=False)
            say("  " + "\n    ".join(lines))


def _shapes(key: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    return f"{key} {tuple(own[key].shape)}" + (f", there {tuple(state[key].shape)}" if key in state else ", not there")


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
