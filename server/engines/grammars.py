"""What a grammar that an answer must match may cost, on any engine.

Compilers of patterns recurse: 30,000 nested parentheses in a JSON schema's pattern overflow the stack of the process
that compiles them, which ends the server for everybody; and a long pattern holds up the event loop while it is read.
"""

import json
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import isqrt
from typing import Generic, TypeVar

from server.engines.errors import InvalidOptionError
from server.engines.request import Grammar, GrammarKind

T = TypeVar("T")

KEPT = 32
"""Options of late requests in the form that an engine needs: what takes long to make is made by `prepare`, where that
holds nobody up, and taken again when the answers start.
"""
MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 500
"""Open brackets of any kind. Brackets in plain strings count too, so this is far above what schemas need."""

MAX_SIGNS = 500
"""Of * ? { ( in one pattern. In several, the squares of their numbers add up, as the work does.

A row of n parts that may each be left out costs llguidance the square of n for one character, in one go that no limit
of its own ends: 30,000 times a* were a minute and 1.7 GB, in the thread that draws everybody's tokens where other text
comes first. xgrammar's work grows faster still.
"""
_WITH_PATTERN = ("pattern", "whitespace_pattern", "item_separator", "key_separator")
"""Keywords of schemas and of structural tags; llguidance reads the last three under `x-guidance`."""


class Compiled(Generic[T]):
    """What a compiler made of each grammar that a request has, and of the last KEPT others. Safe on several threads.

    However many requests wait between `prepare` and their answers, none of their grammars is compiled again.
    """

    def __init__(self, compile: Callable[[Grammar], T]) -> None:
        self._recent = lru_cache(maxsize=KEPT)(compile)
        self._held: dict[int, T] = {}

    def __call__(self, grammar: Grammar) -> T:
        """Raises what the compiler raises."""
        if id(grammar) not in self._held:
            self._held[id(grammar)] = self._recent(grammar)
            weakref.finalize(grammar, self._held.pop, id(grammar), None)
        return self._held[id(grammar)]


def require_bounded(grammar: Grammar) -> None:
    """Raises InvalidOptionError for a grammar that is too long, nested too deeply anywhere in its text, or whose
    patterns have too many signs that repeat, group or leave out.
    """
    if len(grammar.text) > MAX_CHARACTERS:
        raise InvalidOptionError(
            f"the {grammar.kind} has {len(grammar.text)} characters; wanted at most {MAX_CHARACTERS}", "grammar"
        )
    signs = isqrt(sum(sum(map(pattern.count, "*?{(")) ** 2 for pattern in _patterns(grammar)))
    if signs > MAX_SIGNS:
        raise InvalidOptionError(
            f"the {grammar.kind} is as much work as a pattern with {signs} of the signs * ? {{ (; wanted at most "
            f"{MAX_SIGNS}: repeat a whole group, or take characters together in a class",
            "grammar",
        )
    depth = 0
    for character in grammar.text:
        if character in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidOptionError(
                    f"the {grammar.kind} nests more than {MAX_DEPTH} brackets; use fewer", "grammar"
                )
        elif character in ")]}":
            depth = max(0, depth - 1)


def _patterns(grammar: Grammar) -> Iterator[str]:
    """Regular expressions that the whole is made of, and no text that is none of JSON's."""
    if grammar.kind is GrammarKind.REGEX:
        yield grammar.text
    if grammar.kind not in (GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG):
        return
    try:
        within: list[object] = [json.loads(grammar.text, parse_int=float)]  # no limit on digits
    except (ValueError, RecursionError):  # what comes next says so
        return
    while within:
        part = within.pop()
        if isinstance(part, dict):
            yield from (part[key] for key in _WITH_PATTERN if isinstance(part.get(key), str))
            named = part.get("patternProperties")
            yield from named if isinstance(named, dict) else ()
            within += part.values()
        elif isinstance(part, list):
            within += part
