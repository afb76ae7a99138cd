"""The rules of DESIGN sections 3 and 9 that a program can check: layers, sizes, what may be imported where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "pitstop"
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

LAYERS = [  # imports point down only; a package counts as one module, inside it anything goes
    {"errors", "files", "clocks", "locks", "download", "launcher", "values", "config", "usage", "flags", "randomness"}
    | {"listener"},
    {"data", "augment", "models", "optim", "accumulate", "memory", "evaluate", "precision", "machine"}
    | {"pretrained", "weights", "crops", "mix", "ema", "selection", "balance"},
    {"rundir", "checkpoint", "state", "record", "stopper", "notice", "store", "meter", "disks", "output", "health"}
    | {"curves", "runs", "again"},
    {"advice", "plan", "session", "report"},
    {"supervise", "attach", "verify", "archive", "sync", "fetch", "status", "compare", "cli"}
    | {"trained", "predict", "export"},
]
CHAINS = [  # the only imports within a layer
    ["errors", "files", "clocks", "launcher", "values", "config", "usage", "flags"],
    ["errors", "files", "clocks", "locks", "download"],
    ["pretrained", "models", "weights"],
    ["machine", "data"],
    ["notice", "stopper"],
    ["meter", "rundir", "curves"],
    ["advice", "session"],
    ["plan", "session"],
    ["supervise", "attach", "verify", "archive", "sync", "status", "cli"],
    ["trained", "predict"],
    ["trained", "export"],
]
LIGHT = {  # for launchers: they need no torch
    *(
        "errors",
        "files",
        "clocks",
        "locks",
        "download",
        "launcher",
        "values",
        "config",
        "usage",
        "flags",
        "notice",
        "listener",
        "stopper",
        "meter",
        "rundir",
        "disks",
        "output",
        "runs",
        "curves",
    ),
    *("again", "supervise", "attach", "verify", "archive", "sync", "status", "trained", "cli"),
}
HEAVY = {"torch", "torchvision", "timm", "accelerate", "wandb", "numpy", "sklearn", "PIL", "safetensors"}
MODULE_LINES, FUNCTION_LINES, RECIPE_LINES = 250, 50, 80
FINETUNE_LINES, MAIN_LINES = 145, 65  # it has twenty flags of its own, and a recipe's main is its page


def modules() -> dict[str, Path]:
    """Dotted name below pitstop -> file; "" is the package itself."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute name that an import could mean: `from pitstop import files` gives `pitstop.files`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: everything but the bodies of functions."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.Pass:
            return ast.copy_location(ast.Pass(), node)

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.Pass:
            return ast.copy_location(ast.Pass(), node)

    return Strip().visit(tree)


def layer(unit: str) -> int:
    return next(level for level, units in enumerate(LAYERS) if unit in units)


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or layer(importer) > layer(imported):
        return True
    return any(
        importer in chain and imported in chain and chain.index(importer) > chain.index(imported) for chain in CHAINS
    )


def wrong_imports(unit: str, tree: ast.AST) -> list[str]:
    names = {name.split(".")[1] for name in imports(tree) if name.startswith("pitstop.")} - {"__version__"}
    return sorted(name for name in names if not may_import(unit, name))


def test_every_module_has_a_layer() -> None:
    known = set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(known), "a module stands in two layers"
    assert {name.split(".")[0] for name in modules()} - {""} <= known


def test_imports_point_down() -> None:
    found = {name: wrong_imports(name.split(".")[0], parsed(path)) for name, path in modules().items() if name}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_test_of_layers_sees_what_it_must() -> None:
    for code in ("from pitstop import session", "import pitstop.session", "def f():\n from pitstop.session import S"):
        assert wrong_imports("checkpoint", ast.parse(code)) == ["session"]
    assert wrong_imports("checkpoint", ast.parse("from pitstop.rundir import now")) == ["rundir"]
    assert wrong_imports("files", ast.parse("from pitstop.config import C")) == ["config"]
    assert wrong_imports("config", ast.parse("from pitstop.files import C")) == []
    assert wrong_imports("data", ast.parse("from pitstop.data.images import C")) == []
    assert "torch" not in set(imports(at_import_time(ast.parse("def f():\n import torch"))))


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(parsed(SOURCE / "__init__.py"))) == []


def test_light_modules_import_nothing_heavy() -> None:
    """By their own imports, on import or later: and `test_imports_point_down` keeps them from heavy ones of ours."""
    files = modules()
    for name in LIGHT & set(files):
        tree = parsed(files[name])
        assert {imported.split(".")[0] for imported in imports(tree)} & HEAVY == set(), name
        ours = {imported.split(".")[1] for imported in imports(tree) if imported.startswith("pitstop.")}
        assert ours <= LIGHT | {"__version__"}, name


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_are_light_when_run(name: str) -> None:
    code = f"import sys, pitstop.{name}; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_sizes() -> None:
    assert [name for name, path in modules().items() if lines(path) > MODULE_LINES] == []
    most = {path: FINETUNE_LINES if path.name == "finetune.py" else RECIPE_LINES for path in RECIPES}
    assert [path.name for path in RECIPES if lines(path) > most[path]] == []
    long_functions = {
        f"{path.name}:{node.lineno} {node.name}": length
        for path in [*modules().values(), *RECIPES]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1)
        > (MAIN_LINES if path in RECIPES else FUNCTION_LINES)
    }
    assert long_functions == {}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_every_module_says_what_it_is() -> None:
    paths = [*modules().values(), *RECIPES]
    assert [path.name for path in paths if not ast.get_docstring(parsed(path))] == []


def test_recipes_import_nothing_heavy_before_the_flags_are_right() -> None:
    for path in RECIPES:
        names = set(imports(at_import_time(parsed(path))))
        assert {name.split(".")[0] for name in names} & HEAVY == set(), path.name
        ours = {name.split(".")[1] for name in names if name.startswith("pitstop.")}
        assert ours <= LIGHT, f"{path.name}: import it in main()"
