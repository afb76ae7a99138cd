"""Is it the same run? What defines a run, compared with what it was begun with."""

import ast
import os
import secrets
from pathlib import Path
from typing import Any

from pitstop.config import RecipeConfig
from pitstop.errors import UserError
from pitstop.files import canonical_json, sha256, write_json
from pitstop.rundir import RunDirectory, now

SHOWN = 60  # characters of a value in a message


def run_path(config: RecipeConfig, recipe: Path) -> Path:
    """The run directory: the same command finds the same one."""
    return config.runs_dir / (config.name or f"{recipe.stem}-{config.digest(recipe.stem)}")


class Definition:
    """What defines the run, as far as it is known before the data are; and config.json, which keeps it.

    Attributes:
        accepted: in what it differs from what the run was begun with, where --accept_change was given.
    """

    def __init__(self, config: RecipeConfig, recipe: Path, run: RunDirectory) -> None:
        self._config, self._recipe, self._run = config, recipe, run
        self._values = {"recipe": recipe.stem, "code": recipe_hash(recipe), **config.definition()}
        self.accepted: list[str] = []

    def owns(self, data_set: dict[str, Any]) -> None:
        """The data, by their fingerprints, are part of it."""
        self._values["data_set"] = data_set

    def look(self) -> None:
        """Compares it with that of a run which is there; the data count once they are known.

        Raises:
            UserError: something differs, and there is no --accept_change.
        """
        old = self._run.config()["definition"]
        known = {key: value for key, value in old.items() if key != "data_set" or "data_set" in self._values}
        self.accepted = differences(known, self._values)
        if self.accepted and not self._config.accept_change:
            raise refusal(self._run.path, self.accepted)

    def settle(self) -> None:
        """The data are known: writes it down for a new run. Raises as `look`."""
        if self._run.exists():
            self.look()
        else:
            self.write({"wandb_id": secrets.token_hex(4), "begun": now()})

    def write(self, kept: dict[str, Any]) -> None:
        """config.json; `kept` is of the old one, or new."""
        config = {"format": 1, "definition": self._values, "config": self._config.model_dump(mode="json")}
        program = {"program": str(self._recipe.resolve()), "folder": os.getcwd()}  # for `pitstop verify`
        write_json(self._run.path / "config.json", kept | config | program)


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
