"""docs/security.md names a test for each promise, and the tests are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEAST = 25
"""Promises in the list: an expression that matches none would prove nothing."""


def missing(page: str) -> list[str]:
    """Tests that a page names and that are not there."""
    found = []
    for path, name in NAMED.findall(page):
        source = ROOT / path
        defined = (
            {node.name for node in ast.walk(ast.parse(source.read_text())) if hasattr(node, "name")}
            if source.exists()
            else set()
        )
        if name not in defined:
            found.append(f"{path}::{name}")
    return found


def test_every_promise_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = page.partition("## The fail-closed list")[2].partition("\n## ")[0].splitlines()
    promises = [row for row in rows if row.startswith("| ") and not row.startswith("| what fails")]
    assert len(promises) >= LEAST
    assert [row for row in promises if not NAMED.search(row)] == []
    assert missing(page) == []


def test_a_test_that_is_not_there_is_found() -> None:
    assert missing("`tests/test_security_page.py::test_nothing` `tests/none.py::test_it`") == [
        "tests/test_security_page.py::test_nothing",
        "tests/none.py::test_it",
    ]
