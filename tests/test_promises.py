"""docs/reliability.md names a test for each promise, and every test that it names is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| ([RS]\d+) \|(.*)\|$", PAGE, re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions(file: str) -> set[str]:
    return {
        node.name
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_promise_stands_on_the_page_once():
    assert [name for name, _ in ROWS] == [
        *(f"R{n}" for n in range(1, 26)),
        *(f"S{n}" for n in range(1, 14)),
    ]


def test_every_promise_names_its_tests():
    assert [name for name, row in ROWS if not NAMED.search(row.rsplit("|", 1)[-1])] == []


def test_every_named_test_is_there():
    named = NAMED.findall(PAGE)
    known = {file: functions(file) for file, _ in named}
    assert len(named) > 60
    assert [f"{file}::{name}" for file, name in named if name not in known[file]] == []
