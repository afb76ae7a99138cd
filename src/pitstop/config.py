"""Typed flags: what every recipe has in common, and which of it defines the run."""

import math
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from pitstop.errors import UserError
from pitstop.files import canonical_json, sha256
from pitstop.values import ClockTime, Directory, Duration, Interval, MicroBatch, RunName

OPERATIONAL: JsonDict = {"operational": True}


def operational(default: Any, **bounds: Any) -> Any:
    """A field that says how to run, not what: it may change from one attempt to the next."""
    return Field(default, json_schema_extra=OPERATIONAL, **bounds)


def from_environment(variable: str, default: str, **bounds: Any) -> Any:
    """An operational field whose default is set once, by an environment variable that is not empty."""
    return Field(
        default_factory=lambda: os.environ.get(variable) or default,
        json_schema_extra={"operational": True, "environment": variable},
        **bounds,
    )


def mark(field: FieldInfo, name: str) -> Any:
    """What the field carries under `name` ("operational", "environment"), or None."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


class RecipeConfig(BaseModel):
    """The flags that every recipe shares; a recipe's own Config adds to them, or gives other defaults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

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
    runs_dir: Directory = from_environment("PITSTOP_RUNS_DIR", "runs")
    """where runs lie"""
    accept_change: bool = operational(False)
    """continue although what defines the run has changed"""
    dry_run: bool = operational(False)
    """print config, steps, parameters, FLOPs, memory and disk, and start nothing"""
    estimate: bool = operational(False)
    """take twenty real steps, print when the run would be done and what it would cost, and keep nothing"""
    finish_by: ClockTime = operational("")
    """with --estimate: a time such as 08:00; the most epochs that are done by then are printed"""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = operational("auto")
    """of the forward and backward pass"""
    deterministic: bool = operational(False)
    """the same bits on CUDA too, a little slower; a CPU is always exact"""
    compile: bool = operational(False)
    """torch.compile the model"""
    log_gradients: bool = operational(False)
    """the norm of the gradient, and the loss scale of fp16, in the rows of metrics.jsonl"""
    device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """where to train"""
    micro_batch: MicroBatch = operational("auto")
    """most images at once on one GPU, the rest by accumulation; 0: all; auto: as before; halved where memory ends"""
    save_every: Interval = operational("auto")
    """time (30s, 10m, 2h) or steps (200steps) between two checkpoints; auto: from their measured cost and --mtbf"""
    mtbf: Duration = operational("2h")
    """mean time between failures (30m, 2h, 1d): how long such a machine lives"""
    keep: int = operational(3, ge=1)
    """checkpoints kept"""
    store: str = from_environment("PITSTOP_STORE", "")
    """where checkpoints and results are kept beside the disk: s3://, gs://, az:// or file:// and a path"""
    cloud: Literal["auto", "none", "aws", "gcp", "azure", "alibaba", "tencent", "volcengine"] = operational("auto")
    """whose notices to ask for; auto: by what the machine says of itself"""
    max_hours: float = operational(0.0, ge=0)
    """stop, with a checkpoint, after so many hours of this attempt; 0: never"""
    price: float = from_environment("PITSTOP_PRICE", "0", ge=0)
    """of the machine per hour: what the run costs is then shown"""
    currency: str = operational("CNY", min_length=1, max_length=12)
    """of --price and --budget"""
    budget: float = operational(0.0, ge=0)
    """stop when all attempts together have cost so much; 0: no limit"""
    report: bool = from_environment("PITSTOP_REPORT", "true")
    """make the report when the run is finished, if pitstop[report] is installed"""
    tracker: Literal["wandb", "tensorboard", "trackio", "swanlab", "mlflow", "none"] = operational("wandb")
    """where curves are shown; metrics.jsonl is written always"""
    wandb_project: str = operational("pitstop", min_length=1)
    """project there"""
    wandb_entity: str = operational("")
    """user or team at W&B; default: of the account"""
    wandb_group: str = operational("")
    """group of runs at W&B"""
    wandb_tags: str = operational("")
    """tags at W&B, with commas between"""
    wandb_artifact: bool = operational(False)
    """upload final/ to W&B as an artifact when the run is finished"""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """A recipe gives a shared flag another default by `epochs: float = 26`: pydantic would forget the bounds of the
        field, and that it is operational, since to it this is a new field. Here it inherits both."""
        super().__init_subclass__(**arguments)
        for name in cls.__annotations__:
            shared, default = RecipeConfig.model_fields.get(name), cls.__dict__.get(name, ...)
            if shared is not None and not isinstance(default, FieldInfo):
                field: FieldInfo = Field(default, json_schema_extra=shared.json_schema_extra)
                field.metadata = [*shared.metadata]
                setattr(cls, name, field)

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """What a shared flag means is inherited too, unless the recipe says it anew."""
        for name, shared in RecipeConfig.model_fields.items():
            cls.model_fields[name].description = cls.model_fields[name].description or shared.description

    @model_validator(mode="after")
    def _budget_has_a_price(self) -> "RecipeConfig":
        if self.budget and not self.price:
            raise ValueError(f"--budget {self.budget:g}: what does an hour cost? Give --price (or set PITSTOP_PRICE)")
        return self

    @classmethod
    def defining_fields(cls) -> list[str]:
        """The fields that say what is trained: their values make the run."""
        return [name for name, field in cls.model_fields.items() if not mark(field, "operational")]

    def definition(self) -> dict[str, Any]:
        """Defining field -> JSON value. Of data and weights only the last name: another path to the same is alike."""
        values = self.model_dump(mode="json", include=set(self.defining_fields()))
        return values | {name: Path(values[name]).name for name in ("data", "weights") if name in values}

    def digest(self, recipe: str) -> str:
        """Eight hexadecimal digits over the recipe's name and what differs from its defaults (or has none)."""
        required = {name for name, field in type(self).model_fields.items() if field.is_required()}
        default = type(self)(**{name: getattr(self, name) for name in required}).definition()
        values = self.definition()
        changed = {name: value for name, value in values.items() if name in required or value != default[name]}
        return sha256(canonical_json([recipe, changed]).encode())[:8]


def recipe_file(config_type: type[BaseModel]) -> Path:
    """The program in which the recipe's Config is written. Raises UserError where there is none (a notebook, `-c`)."""
    file = getattr(sys.modules[config_type.__module__], "__file__", None)
    if file is None:
        raise UserError(f"{config_type.__name__} is not written in a file; a recipe is a program: put it in one")
    return Path(file).resolve()


def crossings(every: float, epoch_length: int, position: int) -> int:
    """How many borders of `every` epochs lie in (0, position]: exact, so that a border is never met twice or missed."""
    return math.floor(Fraction(position) / (Fraction(str(every)) * epoch_length)) if every > 0 else 0
