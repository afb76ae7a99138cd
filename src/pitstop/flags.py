"""The command line: Fire binds it to names, pydantic checks the values, and nobody pays for a mistyped flag.

`fire.Fire(train)` would call `train` first and complain about `--epohcs` afterwards (google/python-fire#168). So here
Fire never sees the function that costs: it fills a dictionary with raw strings, and everything that is wrong with them
is said at once, before any heavy import.
"""

import difflib
import os
import re
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import fire
from fire.decorators import SetParseFn
from pydantic import BaseModel, ValidationError

from pitstop.config import RecipeConfig, mark
from pitstop.errors import BAD_USAGE, UsageError
from pitstop.launcher import note_hangups, tell_launcher
from pitstop.usage import default_text, described, expected, help_text, shown

C = TypeVar("C", bound=BaseModel)
LOOKS_LIKE_A_FLAG = re.compile(r"--|-[a-zA-Z_]|[\u2010-\u2015\u2212]")  # -1 is a value; the last are typographic dashes
BROKEN_BYTES = re.compile(r"[\ud800-\udfff]")  # what Python makes of bytes that are not UTF-8
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"

SYNONYMS = {  # what others call it -> what we do
    **dict.fromkeys(("lr", "learning_rate", "max_lr", "base_lr"), "--peak_lr"),
    **dict.fromkeys(("data_dir", "data_path", "dataset", "data_root"), "--data"),
    **dict.fromkeys(("bs", "train_batch_size", "per_device_train_batch_size", "global_batch_size"), "--batch_size"),
    **dict.fromkeys(("num_epochs", "n_epochs", "num_train_epochs", "max_epochs"), "--epochs"),
    **dict.fromkeys(("arch", "model_name", "net"), "--model"),
    **dict.fromkeys(
        ("output_dir", "out", "out_dir", "log_dir", "save_dir"), "--runs_dir (all runs) or --name (this run)"
    ),
    **dict.fromkeys(("fp16", "amp", "mixed_precision", "half"), "--precision fp16"),
    **dict.fromkeys(("run_name", "exp_name", "experiment"), "--name"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type"), "--schedule"),
    "bf16": "--precision bf16",
    "wd": "--weight_decay",
    "smoothing": "--label_smoothing",
    "grad_clip": "--clip_grad_norm",
    "max_grad_norm": "--clip_grad_norm",
    "wandb": "--tracker wandb (or none)",
    "project": "--wandb_project",
}
ADVICE = {
    **dict.fromkeys(("num_workers", "workers"), "not needed here: the images live on the device"),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accum", "accumulate", "grad_accum", "accumulation_steps"),
        "give --micro_batch, the most images at once on one GPU; the global batch stays --batch_size",
    ),
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint", "load", "checkpoint", "ckpt", "restart"),
        "not needed: the same command continues its run",
    ),
    **dict.fromkeys(
        ("gpus", "num_processes", "nproc_per_node", "num_gpus"),
        "a flag of accelerate launch: accelerate launch --num_processes 2 <recipe>",
    ),
}


def parse(
    config_type: type[C], argv: Sequence[str] | None = None, *, words: Sequence[str] = (), program: str = ""
) -> C:
    """The checked flags of the command line (`argv`, by default the program's own).

    `words` names the fields that words without a flag fill, in this order; `program` is the program's name in the help.

    Raises:
        SystemExit: with code 2 if something is wrong, after every problem was printed on stderr; with 0 after `--help`.
            Nothing was started, and of several ranks only the first speaks.
    """
    # Before torch is imported, which reads it once: DDP would warn, on every rank, of the option that keeps it exact.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if argv is None and issubclass(config_type, RecipeConfig):
        note_hangups()  # the imports that follow take seconds
    given = list(sys.argv[1:] if argv is None else argv)
    program = program or f"accelerate launch {sys.argv[0]}"
    if "--help" in given or "-h" in given:
        _say(help_text(config_type, words, program), sys.stdout)
        raise SystemExit(0)
    try:
        return bind(config_type, given, words)
    except UsageError as error:
        usage_exit(f"{error}\nNothing was started. All flags: {program} --help")


def bind(config_type: type[C], argv: Sequence[str], words: Sequence[str] = ()) -> C:
    """As `parse`, for programs. Raises UsageError with one line for each problem."""
    flags, problems = _read(config_type, argv, words)

    def collect(**values: str) -> dict[str, str]:
        return values

    tokens = [f"--{name}={value}" for name, value in flags.items()]
    SetParseFn(str)(collect)  # type: ignore[no-untyped-call]
    values = fire.Fire(collect, command=tokens, serialize=lambda _: None)  # type: ignore[no-untyped-call]
    try:
        config = config_type.model_validate(values)
    except ValidationError as invalid:
        first_of_each = {error["loc"][:1]: error for error in reversed(invalid.errors())}
        for name, error in reversed(first_of_each.items()):
            problems.append(_explain(config_type, str(name[0]) if name else "", error, flags, words))
    if problems:
        raise UsageError("\n".join(problems))
    return config


def usage_exit(message: str) -> NoReturn:
    """Says on the first rank what is wrong, and leaves with code 2 on all."""
    _say(message, sys.stderr)
    if _leads():
        tell_launcher(state="failed", restart="person", reason=message.splitlines()[0], exit_code=BAD_USAGE)
    raise SystemExit(BAD_USAGE)


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that was probably meant by `name`."""
    return next(iter(difflib.get_close_matches(name.lower(), names, n=1)), None)


def _leads() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _say(message: str, stream: Any) -> None:
    if _leads():
        print(message, file=stream, flush=True)


def _read(config_type: type[BaseModel], argv: Sequence[str], words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Field -> raw value, in the one way that Fire cannot misread; and what is wrong with the rest."""
    flags: dict[str, str] = {}
    problems: list[str] = []
    rest, places = deque(argv), deque(words)
    while rest:
        word = rest.popleft()
        dashed = word.lstrip(DASHES)
        try:
            if not dashed:
                raise UsageError(f"a lone {word!r} means nothing here; flags look like --epochs 5")
            if LOOKS_LIKE_A_FLAG.match(word):
                name, equals, value = dashed.partition("=")
                has_next = not equals and rest and not LOOKS_LIKE_A_FLAG.match(rest[0])
                name, value = _resolve(
                    config_type, word, name, value if equals else rest.popleft() if has_next else None
                )
            elif places:
                name, value = places.popleft(), word
            else:
                raise UsageError(_stray(config_type, word))
            if name in flags:
                raise UsageError(f"--{name} is given twice: {shown(flags[name])} and {shown(value)}")
            if BROKEN_BYTES.search(value):
                raise UsageError(f"--{name} {value!a}: text in UTF-8 was expected")
            flags[name] = value
        except UsageError as error:
            problems.append(str(error))
    return flags, problems


def _resolve(config_type: type[BaseModel], word: str, name: str, value: str | None) -> tuple[str, str]:
    """The field that the flag `name` means, and its raw value. Raises UsageError."""
    fields = config_type.model_fields
    key = name.replace("-", "_")
    if not word.startswith("--"):
        raise UsageError(f"{word}: a flag begins with two dashes; {_suggest(config_type, key)}")
    if key in fields:
        if value is None and fields[key].annotation is not bool:
            raise UsageError(f"--{key}: a value is missing ({described(fields[key])})")
        return key, "true" if value is None else value
    negated = next((key[len(no) :] for no in ("no_", "no") if key.startswith(no) and key[len(no) :] in fields), None)
    if negated is None:
        raise UsageError(f"--{name}: no such flag; {_suggest(config_type, key)}")
    if fields[negated].annotation is not bool:
        raise UsageError(
            f"--{name}: --{negated} cannot be switched off, it takes a value ({expected(fields[negated])})"
        )
    if value is not None:
        raise UsageError(f"--{name} {value}: --{name} takes no value; say --{negated} {value}, or --{name} alone")
    return negated, "false"


def _stray(config_type: type[BaseModel], word: str) -> str:
    name = word.partition("=")[0].replace("-", "_")
    if name in config_type.model_fields:
        return f"{shown(word)}: did you mean --{word}?"
    return f"{shown(word)}: this word belongs to no flag; flags look like --epochs 5"


def _suggest(config_type: type[BaseModel], key: str) -> str:
    fields = list(config_type.model_fields)
    known = [*fields, *SYNONYMS, *ADVICE] if issubclass(config_type, RecipeConfig) else fields
    meant = key if key in known else nearest(key, known)
    if meant is None and key.lower().startswith("no"):
        meant = nearest(re.sub("no_?", "", key.lower(), count=1), fields)
    if meant is None:
        return "--help lists those that there are"
    if meant in ADVICE:
        return ADVICE[meant] if meant == key else f"--{meant} is {ADVICE[meant]}"
    return f"did you mean {SYNONYMS.get(meant, f'--{meant}')}?"


def _explain(config_type: type[BaseModel], name: str, error: Any, flags: dict[str, str], words: Sequence[str]) -> str:
    """One line from one complaint of pydantic's: what was given, what was expected, what the default is."""
    own_words = str(error["ctx"]["error"]) if error["type"] == "value_error" else None
    if not name:  # a check of the whole Config, written by the recipe
        return own_words or str(error["msg"])
    field = config_type.model_fields[name]
    wanted = own_words or f"{expected(field)} was expected"
    if error["type"] == "finite_number":
        wanted = wanted.replace("number", "finite number", 1)
    label = name.upper() if name in words else f"--{name}"
    if error["type"] == "missing":
        return f"{label} is missing ({described(field)})"
    if name in flags:
        default = "" if field.is_required() else f" (default: {default_text(field)})"
        return f"{label} {shown(flags[name])}: {wanted}{default}"
    variable = mark(field, "environment")
    if variable and os.environ.get(variable):
        return f"environment variable {variable}={shown(os.environ[variable])}: {wanted} (it is the default of {label})"
    return f"the default of {label}, {shown(str(error['input']))}, is wrong: {wanted}"
