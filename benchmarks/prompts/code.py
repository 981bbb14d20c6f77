"""Prompts about code, made from a task's description and its reference solution."""

import ast
import io
import random
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

SWAPS: Mapping[str, str] = {
    "==": "!=",
    "!=": "==",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "+": "-",
    "-": "+",
    "*": "+",
    "%": "//",
    "//": "%",
    "and": "or",
    "or": "and",
    "True": "False",
    "False": "True",
    "min": "max",
    "max": "min",
    "0": "1",
    "1": "2",
    "2": "3",
    "append": "remove",
    "upper": "lower",
    "lower": "upper",
}
"""What a defect makes of a token."""


def reference(row: Mapping[str, Any]) -> str:
    """A row's solution with line ends of this system and no trailing white space."""
    return "\n".join(line.rstrip() for line in str(row["code"]).splitlines()).strip("\n")


def _function(code: str, tests: Sequence[str]) -> ast.FunctionDef | None:
    """The function that the tests call, None where the solution does not parse or has none."""
    try:
        defined = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError):
        return None
    called = [node for node in defined if any(f"{node.name}(" in test for test in tests)]
    return called[-1] if called else None


def signature(row: Mapping[str, Any]) -> str | None:
    """`def name(args):` with the description as docstring, ready to be continued; None where there is no function."""
    found = _function(reference(row), row["test_list"])
    if found is None:
        return None
    return f'def {found.name}({ast.unparse(found.args)}):\n    """{row["text"].strip()}"""\n'


def partial(row: Mapping[str, Any]) -> str | None:
    """The first half of the solution's lines, two at least and not all; None where it is too short for that."""
    lines = reference(row).split("\n")
    kept = max(2, len(lines) // 2)
    return "\n".join(lines[:kept]) + "\n" if kept < len(lines) else None


def with_defect(code: str, rng: random.Random) -> str | None:
    """The code with one token swapped, so that it parses and means something else; None where nothing can be."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
        before = ast.dump(ast.parse(code))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return None
    places = [token for token in tokens if token.string in SWAPS]
    rng.shuffle(places)
    lines = code.split("\n")
    for token in places:
        line, (row, start) = lines[token.start[0] - 1], token.start
        changed = line[:start] + SWAPS[token.string] + line[token.end[1] :]
        defective = "\n".join([*lines[: row - 1], changed, *lines[row:]])
        try:
            if ast.dump(ast.parse(defective)) != before:
                return defective
        except (SyntaxError, ValueError):
            continue
    return None


def fix(row: Mapping[str, Any]) -> str | None:
    """A request to mend the solution, which has a defect drawn by the task's number."""
    defective = with_defect(reference(row), random.Random(f"defect {row['task_id']}"))
    return None if defective is None else f"Fix this function:\n{defective}"


def explain(row: Mapping[str, Any]) -> str | None:
    """A question about the solution; None where it holds no function."""
    code = reference(row)
    return None if _function(code, row["test_list"]) is None else f"What does this function do?\n{code}"
