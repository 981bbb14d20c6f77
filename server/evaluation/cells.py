"""Cells of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

_UNKNOWN = "-"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def judged_labels(results: Mapping[str, Any]) -> list[str]:
    """Labels of the suites whose answers are right or wrong."""
    return [suite["label"] for suite in results["suites"] if suite["accuracy"] is not None]


def number(value: float | None, places: int = 3) -> str:
    """A figure, or a dash."""
    return _UNKNOWN if value is None else f"{value:.{places}f}"


def interval(found: Mapping[str, Any] | None, name: str, places: int = 3) -> str:
    """A figure with its interval, or a dash."""
    if found is None:
        return _UNKNOWN
    return f"{number(found[name], places)} [{number(found['low'], places)}, {number(found['high'], places)}]"
