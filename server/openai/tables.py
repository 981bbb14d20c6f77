"""The tables of docs/operating.md that say what a message may hold, and which fields are let through without effect.

`python -m server.openai.tables` writes them anew.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from server.openai.history import CallBody, CalledFunction, ChatMessage, HistoryBody, Part
from server.openai.responses.items import CallItem, ReasoningItem, ResultItem
from server.openai.unsupported import IN_CHAT, IN_COMPLETION, IN_RESPONSES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
_PLACES: Mapping[str, type[HistoryBody]] = {
    "message": ChatMessage,
    "part of `content`": Part,
    "call in `tool_calls`": CallBody,
    "function called": CalledFunction,
    "item `function_call`": CallItem,
    "item `function_call_output`": ResultItem,
    "item `reasoning`": ReasoningItem,
}


def history_table() -> str:
    """What is read, dropped and refused in each object of a conversation."""
    rows = [
        (place, _names(of.field_names()), f"{_names(of.bookkeeping)}, any other", _names(of.not_honoured))
        for place, of in _PLACES.items()
    ]
    return _markdown(("in a", "read", "dropped", "refused, unless null, empty or false"), rows)


def neutral_table() -> str:
    """Fields that are not honoured, with the values that are let through. Null is, of every field."""
    rows = []
    endpoints = {"chat": IN_CHAT, "text": IN_COMPLETION, "responses": IN_RESPONSES}
    for name in {**IN_CHAT, **IN_COMPLETION, **IN_RESPONSES}:
        values = [_values(of[name]) if name in of else None for of in endpoints.values()]
        if any(values):
            rows.append((f"`{name}`", *("-" if each is None else each or "null only" for each in values)))
    return _markdown(("field", *endpoints), rows)


def written(page: str) -> str:
    """A page with the tables of now between their marks."""
    for name, table in _TABLES.items():
        begin, end = f"<!-- {name}: written by `python -m server.openai.tables` -->", f"<!-- end of {name} -->"
        before, mark, rest = page.partition(begin)
        assert mark, f"the page has no mark of {name}"
        page = f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
    return page


_TABLES: Mapping[str, Callable[[], str]] = {"history": history_table, "neutral": neutral_table}


def _values(neutral: tuple[object, ...] | None) -> str:
    return "any value" if neutral is None else ", ".join(f"`{json.dumps(value)}`" for value in neutral)


def _names(names: object) -> str:
    assert isinstance(names, frozenset | Mapping)
    return ", ".join(f"`{name}`" for name in sorted(names))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
