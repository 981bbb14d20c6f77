"""Figures and prose as Markdown."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurements.results import Row
from server.evaluation.cells import markdown_table

WIDTH = 118


def share(value: float | None, places: int = 3) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{places}f}"


def between(bounds: Sequence[float], places: int = 3) -> str:
    """An interval."""
    low, high = bounds
    return f"[{low:.{places}f}, {high:.{places}f}]"


def span(values: Iterable[float], places: int = 3) -> str:
    """The least and the largest value, or the one that all are."""
    ordered = sorted(f"{value:.{places}f}" for value in values)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def sizes(rows: Iterable[Row], field: str = "examples") -> str:
    """The sample sizes of rows."""
    found = sorted({row[field] for row in rows})
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def paragraph(text: str) -> str:
    """Prose, wrapped."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(textwrap.indent(paragraph(item), "  ").replace("  ", "* ", 1) for item in items)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return markdown_table(head, list(rows))


def section(title: str, *parts: str) -> str:
    """A heading and what follows; empty parts are left out."""
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def _shown(word: str) -> str:
    return f".../{Path(word).name}" if Path(word).is_absolute() else word


def measured(found: Mapping[str, Any], sample: str) -> str:
    """Which command measured a result file, with what, on how many examples."""
    command = " ".join(map(_shown, found["command"].split()))
    environment = dict(found["environment"])
    commit = environment.pop("commit")
    versions = ", ".join(f"{name} {version}" for name, version in environment.items())
    return bullets([f"Command: `{command}`", f"Environment: {versions}; commit `{commit}`", f"Sample: {sample}"])
