"""docs/faults.md: 27 rows, and every test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`")


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_and_has_a_test() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 28))
    assert all(REFERENCE.search(row[3]) for row in rows)


def test_every_test_is_there() -> None:
    named = 0
    for line in PAGE.read_text().splitlines():
        file = ""
        for path, name in REFERENCE.findall(line):
            file = path or file
            if not file and name:
                file = "tests/faults/test_stop.py"  # the last lines of the page
            assert (ROOT / file).exists(), file
            assert not name or name in names_in(ROOT / file), f"{file}::{name}"
            named += bool(name)
    assert named > 60
