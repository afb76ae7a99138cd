"""The command that continues a run, or makes it anew, out of its config.json. No code of the recipe is executed."""

import ast
import contextlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pitstop.config import RecipeConfig, mark

NOT_SAID = ("accept_change", "dry_run", "estimate", "finish_by")  # of one attempt, not of the run


def command(about: dict[str, Any], processes: int = 1) -> str:
    """`accelerate launch recipes/digits.py --epochs 3`, as it would be typed in the folder in which the run was begun.

    A flag is left out only where its value is known to be the default: of the recipe as it lies on the disk, and of
    this environment (PITSTOP_RUNS_DIR and its kin).

    Args:
        about: config.json.
        processes: of the last attempt.
    """
    program, folder = str(about.get("program", "")), str(about.get("folder", ""))
    values = about.get("config")
    defaults = _defaults(Path(program))
    words = ["accelerate", "launch", *(["--num_processes", str(processes)] if processes > 1 else [])]
    words.append(os.path.relpath(program, folder) if folder and Path(program).is_relative_to(folder) else program)
    for name, value in values.items() if isinstance(values, dict) else ():
        if name in NOT_SAID or value is None or (name in defaults and _same(name, value, defaults[name], folder)):
            continue
        whole = isinstance(value, float) and value.is_integer()
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(int(value) if whole else value)]
    return shlex.join(words)


def _same(name: str, value: object, default: object, folder: str) -> bool:
    if name == "runs_dir":
        return os.path.normpath(os.path.join(folder, str(value))) == os.path.normpath(
            os.path.join(folder, str(default))
        )
    if isinstance(value, bool) or isinstance(default, bool):
        return value is default
    with contextlib.suppress(TypeError, ValueError):
        return float(value) == float(default)  # type: ignore[arg-type]
    return value == default


def _defaults(program: Path) -> dict[str, Any]:
    """Defaults of the flags, as far as they can be read off. What a recipe that is not here defines is not known."""
    shared = RecipeConfig.model_fields
    try:
        defaults = RecipeConfig().model_dump(mode="json")
    except ValidationError:  # this environment has a wrong one
        return {}
    own = _own_defaults(program)
    if own is None:
        return {name: value for name, value in defaults.items() if mark(shared[name], "operational")}
    return {name: value for name, value in (defaults | own).items() if value is not ...}


def _own_defaults(program: Path) -> dict[str, Any] | None:
    """Field -> default (`...`: it is none that can be read off) of the class Config in a recipe, if there is one."""
    try:
        tree = ast.parse(program.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    if not classes:
        return None
    return {
        node.target.id: _literal(node.value)
        for node in classes[0].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _literal(node: ast.expr | None) -> Any:
    """The value of `8`, `"digits"`, `Field(32, ge=8)` or `operational(0.0)`; else `...`."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Field", "operational") and node.args:
        node = node.args[0]
    try:
        return ... if node is None else ast.literal_eval(node)
    except ValueError:
        return ...
