"""`pitstop export RUN --format onnx`: the model of a run for programs without pitstop, loaded there and compared."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pitstop.errors import FINISHED, UserError
from pitstop.files import fsync_directory
from pitstop.runs import flags_of
from pitstop.trained import TrainedFlags

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = {"safetensors": ".safetensors", "pth": ".pth", "onnx": ".onnx", "torchscript": ".pt"}
ONNX = ("onnx", "onnxscript", "onnxruntime")
INPUT = "float32 [N, channels, image_size, image_size]: (pixel / 255 - mean) / std"


class Export(TrainedFlags):
    """Writes the model of a run in a format that other programs load, labels and preprocessing in it.

    Then loads it there, in a process without pitstop, and compares it with the run's model on real
    images. What fails leaves nothing behind."""

    format: Literal["safetensors", "pth", "onnx", "torchscript"]
    """safetensors: for timm; pth: a plain state_dict for timm and torchvision, its labels in a .json beside it;
    onnx: for onnxruntime and others, any size of batch; torchscript: for C++ and plain torch"""
    output: str = ""
    """file to write, which must not exist yet with other content; default: export/<which>/model.<ending> in the run"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop export <argv>`."""
    flags = flags_of(Export, "export", argv)
    weights, suffix = flags.weights, SUFFIXES[flags.format]
    if flags.format == "onnx" and (missing := [name for name in ONNX if not find_spec(name)]):
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'pitstop[export]'")
    usual = weights.parent / "export" / weights.name / f"model{suffix}"
    target = Path(os.path.abspath(os.path.expanduser(flags.output))) if flags.output else usual
    if target.suffix != suffix or target.is_dir():
        raise UserError(f"--output {target}: the name of a file ending in {suffix} was expected")
    print(export(weights, flags.format, target))
    return FINISHED


def export(weights: Path, name: str, target: Path) -> str:
    """Writes `target` (for pth also a .json beside it) from best/ or final/. Returns what was done, for a person.

    Raises:
        UserError: damaged weights; another file is there; the exported model does not load, or computes other logits.
    """
    from pitstop import models
    from pitstop.export.formats import WRITERS
    from pitstop.export.proof import NUM_IMAGES, compared

    model, card = models.load(weights)
    about = described(card, weights)
    try:
        with _workshop(target) as folder:
            files = WRITERS[name](model, about, folder / target.name)
            difference, ways = compared(model, about, name, files[0])
            known = [_is_there(file, target.with_name(file.name)) for file in files]
            num_bytes = files[0].stat().st_size
            for file in files:
                _place(file, target.with_name(file.name))
    except RuntimeError as error:  # what torch raises at an operation that it cannot bring into a format
        reason = str(error)[:500]
        raise UserError(f"{card['model']} cannot be exported as {name}; try another --format. {reason}") from error
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}): say --output.") from error
    return "\n".join(
        [
            f"{target}: {num_bytes / 1e6:.1f} MB{', the same as was there' if all(known) else ''}",
            f"  loaded without pitstop by {ways}: on {NUM_IMAGES} real images the largest difference of a logit is "
            f"{difference:.1e}",
            *(lines_of_code(model, about) if name in ("safetensors", "pth") else ()),
        ]
    )


def described(card: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The card of a model, and what else those need who do not have pitstop; it goes into the exported file."""
    from pitstop import models

    arguments, stem = models.plain_arguments(card)
    about = card | {"stem": stem, "timm_arguments": arguments, "input": INPUT, "resize": _resize(card)}
    return about | {"run": weights.parent.name, "weights": weights.name}


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """A directory on the disk of `target`, which exists while it is filled."""
    there = next(parent for parent in target.parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=there) as folder:
        yield Path(folder)


def _is_there(file: Path, target: Path) -> bool:
    """Raises UserError if something else is."""
    if not os.path.lexists(target):
        return False
    if target.is_file() and target.read_bytes() == file.read_bytes():
        return True
    raise UserError(f"{target} is there already, with other content: delete it, or say --output.")


def _place(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
    os.replace(file, target)
    fsync_directory(target.parent)


def _resize(card: dict[str, Any]) -> str:
    size, load_size = card["image_size"], card.get("load_size")
    if load_size is None:
        return f"to {size}x{size}, bilinear, antialiased"
    return f"shorter side to {load_size}, bilinear, antialiased; then the centre of {size}x{size}"


def lines_of_code(model: "nn.Module", about: dict[str, Any]) -> list[str]:
    """What builds the model in timm, for load_state_dict."""
    arguments = ", ".join(f"{name}={value}" for name, value in about["timm_arguments"].items())
    lines = [f'model = timm.create_model("{about["model"]}", {arguments})']
    if about["stem"] == "small":
        shape = getattr(model.get_submodule("conv1"), "weight", None)
        lines += [
            f"model.conv1 = nn.Conv2d({about['channels']}, {len(shape)}, 3, padding=1, bias=False)"
            if shape is not None
            else "model.conv1[0].stride = (1, 1)",
            "model.maxpool = nn.Identity()",
        ]
    return ["  in timm:", *(f"    {line}" for line in lines)]
