"""What a grammar that an answer must match may cost, on any engine.

Compilers of patterns recurse: 30,000 nested parentheses in a JSON schema's pattern overflow the stack of the process
that compiles them, which ends the server for everybody; and a long pattern holds up the event loop while it is read.
"""

import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

from server.engines.base import Grammar
from server.engines.errors import InvalidOptionError

T = TypeVar("T")

KEPT = 32
"""Options of late requests in the form that an engine needs: what takes long to make is made by `prepare`, where that
holds nobody up, and taken again when the answers start.
"""
MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 500
"""Open brackets of any kind. Brackets in plain strings count too, so this is far above what schemas need."""


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
    """Raises InvalidOptionError for a grammar that is too long, or nested too deeply anywhere in its text."""
    if len(grammar.text) > MAX_CHARACTERS:
        raise InvalidOptionError(
            f"the {grammar.kind} has {len(grammar.text)} characters; wanted at most {MAX_CHARACTERS}", "grammar"
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
