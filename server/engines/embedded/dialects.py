"""What requests write grammars in, as llguidance takes it."""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from server.engines.request import Grammar, GrammarKind

_LARK_RULE = re.compile(r"^\s*[?!]*[a-zA-Z_]\w*\s*:(?!:)", re.MULTILINE)
_EBNF_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*|\s*\n\s*(?=\|)', re.DOTALL)
"""A text, a class of characters, a comment, or a line's end before another alternative."""
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
"""Keywords whose value is a mapping of names to schemas: the names are no keywords."""
_NO_SCHEMA = ("enum", "const", "default", "examples")
_COMBINING = ("$ref", "anyOf", "oneOf", "allOf")


def to_llguidance(grammar: Grammar) -> str:
    """Raises ValueError, or what llguidance's converters do, where the text is none of its kind."""
    from llguidance import LLMatcher

    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return _json(json.dumps(closed(json.loads(grammar.text))))
        case GrammarKind.JSON_OBJECT:
            return _json('{"type": "object"}')
        case GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(grammar.text))
        case GrammarKind.CHOICE:
            texts = " | ".join(map(json.dumps, json.loads(grammar.text)))
            return str(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}"))
        case GrammarKind.EBNF:
            return str(LLMatcher.grammar_from_lark(_lark(grammar.text)))
        case GrammarKind.STRUCTURAL_TAG:
            raise ValueError("this engine takes no structural tags")


def _json(schema: str) -> str:
    """With one blank behind a comma or a colon and none elsewhere.

    Where blanks are free, small models write nothing else until the answer is full.
    """
    from llguidance import LLMatcher

    return str(
        LLMatcher.grammar_from_json_schema(
            schema, defaults={"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        )
    )


def closed(schema: Any) -> Any:
    """The schema, changed in place: an object has no properties but those it names, unless it says otherwise.

    vLLM's compiler takes objects so, and small models would name properties without end. A schema that puts objects
    together of several parts stays as it is: each part would rule the others' properties out.
    """
    parts = list(_schemas(schema))
    if not any(map(_combines, parts)):
        for part in parts:
            if "properties" in part:
                part.setdefault("additionalProperties", False)
    return schema


def _schemas(schema: object) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for each in schema:
            yield from _schemas(each)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword not in _NO_SCHEMA:
                named = keyword in _BY_NAME and isinstance(value, dict)
                yield from _schemas(list(value.values()) if named else value)


def _combines(schema: dict[str, Any]) -> bool:
    every = schema.get("allOf")
    several = isinstance(every, list) and len(every) > 1
    return several or ("properties" in schema and any(keyword in schema for keyword in _COMBINING))


def _lark(text: str) -> str:
    """A grammar in Lark's notation, from that or from EBNF as xgrammar and llama.cpp have it."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if _LARK_RULE.search(text) and "::=" not in text:
        return text
    return str(gbnf_to_lark(_EBNF_PART.sub(_plain, text)))


def _plain(part: re.Match[str]) -> str:
    """Without what llguidance's converter does not read, or reads wrongly: it drops leading zeros of escapes."""
    text = part[0]
    if text[0] not in '"[':
        return " "
    return _ESCAPE.sub(partial(_character, in_class=text[0] == "["), text)


def _character(escape: re.Match[str], *, in_class: bool) -> str:
    digits = escape[1] or escape[2] or escape[3]
    if digits is None:
        return escape[0]
    code = int(digits, 16)
    if in_class and code < 256:
        return f"\\x{code:02x}"
    return json.dumps(chr(code))[1:-1] if chr(code) in '"\\\n\r\t' else chr(code)
