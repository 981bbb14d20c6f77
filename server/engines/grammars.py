"""What a grammar that an answer must match may cost, on any engine.

Compilers of patterns recurse: 30,000 nested parentheses in a JSON schema's pattern overflow the stack of the process
that compiles them, which ends the server for everybody; and a long pattern holds up the event loop while it is read.
"""

from server.engines.base import Grammar
from server.engines.errors import InvalidOptionError

KEPT = 32
"""Options of late requests in the form that an engine needs: what takes long to make is made by `prepare`, where that
holds nobody up, and taken again when the answers start.
"""
MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 500
"""Open brackets of any kind. Brackets in plain strings count too, so this is far above what schemas need."""


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
