"""Typed flags: what every recipe has in common, and which of it defines the run."""

import math
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pitstop.files import canonical_json, sha256

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> float:
    """`30s`, `10m`, `2h`, `1d`, or a bare number of seconds, as seconds. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(value))
    if match is None:
        raise ValueError("a duration such as 30s, 10m or 2h was expected")
    return float(match[1]) * UNITS[match[2] or "s"]


def interval(value: object) -> str:
    """A duration (`60s`, `10m`) or a number of steps (`200steps`), kept as it was written. Raises ValueError."""
    text = str(value)
    match = re.fullmatch(r"(\d+)steps?", text)
    if match is None:
        try:
            seconds(text)
        except ValueError:
            raise ValueError("an interval such as 60s, 10m or 200steps was expected") from None
    elif int(match[1]) < 1:
        raise ValueError("at least 1 step was expected")
    return text


def run_name(value: str) -> str:
    """One plain name of a directory, or nothing. Raises ValueError."""
    if value and (not re.fullmatch(r"\w[\w.+=@-]*", value) or len(value.encode()) > 100 or value == "archive"):
        raise ValueError(
            "a name of up to 100 bytes of letters, digits, '.', '_', '-', '+', '=' and '@' was expected, "
            "beginning with a letter or digit (and not 'archive')"
        )
    return value


def _not_one(value: int) -> int:
    if value == 1:
        raise ValueError("at least 2 was expected: batch normalisation has no statistics over one sample")
    return value


Interval = Annotated[str, BeforeValidator(interval)]
RunName = Annotated[str, AfterValidator(run_name)]
MicroBatch = Annotated[int, AfterValidator(_not_one)]
OPERATIONAL = {"operational": True}


def operational(default: Any, **bounds: Any) -> Any:
    """A field that says how to run, not what: it may change from one attempt to the next."""
    return Field(default, json_schema_extra=OPERATIONAL, **bounds)


class RecipeConfig(BaseModel):
    """The flags that every recipe shares; a recipe's own Config adds to them, or gives other defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True)

    epochs: float = Field(10, gt=0)
    """passes over the training images; may be a fraction"""
    batch_size: int = Field(500, ge=2)
    """images per step: all GPUs and accumulation together"""
    peak_lr: float = Field(0.2, ge=0)
    """highest learning rate, for the mean loss of a batch"""
    schedule: Literal["triangle", "cosine", "step", "constant"] = "triangle"
    """course of the learning rate over the run"""
    step_epochs: float = Field(10, gt=0)
    """with --schedule step: epochs between two drops"""
    step_factor: float = Field(0.1, gt=0, le=1)
    """with --schedule step: what the learning rate is multiplied by at a drop"""
    weight_decay: float = Field(5e-4, ge=0)
    """on weights, not on norms and biases"""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of the target spread over all classes"""
    clip_grad_norm: float = Field(0.0, ge=0)
    """largest norm of the gradient; 0: no clipping"""
    model: str = "resnet18"
    """any timm model"""
    data: str = ""
    """what to train on; each recipe says what it takes"""
    seed: int = Field(0, ge=0, lt=2**31)
    """of weights, order and augmentation"""
    log_every: int = Field(50, ge=1)
    """steps between two rows of metrics.jsonl"""
    eval_every: float = Field(1.0, ge=0)
    """epochs between two evaluations; 0: only at the end"""

    name: RunName = operational("")
    """of the run and its directory; default: <recipe>-<digest of the flags>"""
    runs_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("PITSTOP_RUNS_DIR", "runs")), json_schema_extra=OPERATIONAL
    )
    """where runs lie (environment: PITSTOP_RUNS_DIR)"""
    accept_change: bool = operational(False)
    """continue although what defines the run has changed"""
    dry_run: bool = operational(False)
    """print config, steps, parameters, FLOPs, memory and disk, and start nothing"""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = operational("auto")
    """of the forward and backward pass"""
    deterministic: bool = operational(False)
    """the same bits on CUDA too, a little slower; a CPU is always exact"""
    compile: bool = operational(False)
    """torch.compile the model"""
    device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """where to train"""
    micro_batch: MicroBatch = operational(0, ge=0)
    """most images at once on one GPU, the rest by accumulation; 0: all"""
    save_every: Interval = operational("60s")
    """time (30s, 10m, 2h) or steps (200steps) between two checkpoints"""
    keep: int = operational(3, ge=1)
    """checkpoints kept"""
    tracker: Literal["wandb", "none"] = operational("wandb")
    """where curves are shown; metrics.jsonl is written always"""
    wandb_project: str = operational("pitstop", min_length=1)
    """project at W&B"""

    @classmethod
    def defining_fields(cls) -> list[str]:
        """The fields that say what is trained: their values make the run."""
        return [name for name, field in cls.model_fields.items() if field.json_schema_extra != OPERATIONAL]

    def definition(self) -> dict[str, Any]:
        """Defining field -> JSON value. The data appear by their last name: another path to the same data is the same."""
        values = self.model_dump(mode="json", include=set(self.defining_fields()))
        return values | {"data": Path(self.data).name}

    def digest(self, recipe: str) -> str:
        """Eight hexadecimal digits over the recipe's name and what differs from its defaults."""
        default = type(self)().definition()
        changed = {name: value for name, value in self.definition().items() if value != default[name]}
        return sha256(canonical_json([recipe, changed]).encode())[:8]


def crossings(every: float, epoch_length: int, position: int) -> int:
    """How many borders of `every` epochs lie in (0, position]: exact, so that a border is never met twice or missed."""
    return math.floor(Fraction(position) / (Fraction(every) * epoch_length)) if every > 0 else 0
