"""Flags in human words: what is expected, what the default is, and the page that `--help` prints."""

import inspect
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pitstop.config import RecipeConfig, mark

WIDTH = 100
INDENT = 20
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
BOUNDS = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "less than"}


def expected(field: FieldInfo) -> str:
    """The type and the bounds of a field: "a whole number of at least 2", "one of fp16, fp32"."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(field.annotation))
    kind = KINDS.get(field.annotation) or ("a path" if "Path" in str(field.annotation) else str(field.annotation))
    bounds = [
        f"{said} {getattr(item, bound)}"
        for item in field.metadata
        for bound, said in BOUNDS.items()
        if hasattr(item, bound)
    ]
    if any(getattr(item, "min_length", 0) for item in field.metadata):
        bounds.append("that is not empty")
    return " ".join([kind, " and ".join(bounds)]).rstrip()


def default_text(field: FieldInfo) -> str:
    """The default of a field, which must have one, as one would type it."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in ("", None) else str(value)


def described(field: FieldInfo) -> str:
    """What a field is, in its own words, else by its type."""
    return field.description or expected(field)


def shown(value: str) -> str:
    """What was given, cut if it is long, so that its ends can be seen."""
    return shlex.quote(value if len(value) <= 80 else value[:77] + "...")


def help_text(config_type: type[BaseModel], words: Sequence[str], program: str) -> str:
    """The page for `--help`: the docstring of the Config (or of its program), then every flag in its group."""
    doc = config_type.__doc__ or sys.modules[config_type.__module__].__doc__ or ""
    lines = [f"usage: {' '.join([program, *(word.upper() for word in words)])} [--flag value ...]", ""]
    for line in inspect.cleandoc(doc).splitlines():
        lines += textwrap.wrap(line, WIDTH) or [""]
    for title, names in _groups(config_type).items():
        if names:
            lines += ["", f"{title}:"]
        for name in names:
            lines += _lines(name.upper() if name in words else f"--{name}", config_type.model_fields[name])
    return "\n".join(lines)


def _groups(config_type: type[BaseModel]) -> dict[str, list[str]]:
    own, shared, operational = list[str](), list[str](), list[str]()
    for name, field in config_type.model_fields.items():
        group = operational if mark(field, "operational") else shared if name in RecipeConfig.model_fields else own
        group.append(name)
    if not issubclass(config_type, RecipeConfig):
        return {"flags": [*own, *shared, *operational]}
    return {
        "flags of this recipe (they define the run)": own,
        "flags that every recipe shares (they define the run)": shared,
        "operational flags (they may change between attempts of a run)": operational,
    }


def _lines(flag: str, field: FieldInfo) -> list[str]:
    facts = []
    if field.annotation is bool:
        facts.append(f"switch, off: {flag.replace('--', '--no-', 1)}")
    elif field.annotation is not str and field.description:
        facts.append(expected(field))
    if field.is_required():
        facts.append("required")
    elif default_text(field) != "empty":
        facts.append(f"default {default_text(field)}")
    if variable := mark(field, "environment"):
        facts.append(f"environment {variable}")
    text = described(field) + (f" [{'; '.join(facts)}]" if facts else "")
    first = f"  {flag} ".ljust(INDENT)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT, break_on_hyphens=False)
