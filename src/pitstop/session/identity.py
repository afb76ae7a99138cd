"""Is it the same run? What defines a run, compared with what it was begun with."""

import ast
from pathlib import Path
from typing import Any

from pitstop.config import RecipeConfig
from pitstop.errors import UserError
from pitstop.files import canonical_json, sha256

SHOWN = 60  # characters of a value in a message


def run_path(config: RecipeConfig, recipe: Path) -> Path:
    """The run directory: the same command finds the same one."""
    return config.runs_dir / (config.name or f"{recipe.stem}-{config.digest(recipe.stem)}")


def definition(config: RecipeConfig, recipe: Path) -> dict[str, Any]:
    """What defines the run, as far as it is known before the data are."""
    return {"recipe": recipe.stem, "code": recipe_hash(recipe), **config.definition()}


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists, without positions, docstrings and empty fields, so that it is the same under
    every version of Python."""
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields = [[name, _plain(value)] for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_docstring(item)]
    return repr(node)


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def recipe_hash(recipe: Path) -> str:
    """Over the recipe's code, not over its comments, docstrings and layout: 16 hexadecimal digits."""
    return sha256(canonical_json(_plain(ast.parse(recipe.read_bytes()))).encode())[:16]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name: old -> new` for everything in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return lines
    if isinstance(old, list) and isinstance(new, list) and old != new:
        gone, come = [x for x in old if x not in new], [x for x in new if x not in old]
        return [f"{name}: {len(old)} entries -> {len(new)} (gone: {_shown(gone)}, new: {_shown(come)})"]
    return [] if old == new else [f"{name}: {_shown(old)} -> {_shown(new)}"]


def refusal(run: Path, lines: list[str]) -> UserError:
    """The error for a run that is not the one that was begun under this name, with the three ways on."""
    listed = "\n".join(f"    {line}" for line in lines)
    return UserError(
        f"{run} was begun with something else (old -> new):\n{listed}\n"
        "  Three ways on:\n"
        "    --accept_change            continue all the same (recorded: the result is no longer exact)\n"
        "    --name OTHER               begin another run beside it\n"
        f"    pitstop archive {run}   move it out of the way; the same command then begins anew"
    )
