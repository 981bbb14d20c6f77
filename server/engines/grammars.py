"""Grammars that answers must match: what one may cost, and xgrammar's compiler of them.

Compilers of patterns recurse: 30,000 nested parentheses in a JSON schema's pattern overflow the stack of the process
that compiles them, which ends the server for everybody; and a long pattern holds up the event loop while it is read.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from server.engines.base import Grammar, GrammarKind
from server.engines.errors import InvalidOptionError

MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 500
"""Open brackets of any kind. Brackets in plain strings count too, so this is far above what schemas need."""
CACHE_BYTES = 256 << 20
"""Of compiled grammars."""
_LARK_RULE = re.compile(r"^\s*[?!]*[a-zA-Z_]\w*\s*:(?!:)", re.MULTILINE)
"""vLLM takes a grammar in Lark's notation too."""


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


_TIME_AND_PLACE = re.compile(r"\[[0-9:]+\] \S+:[0-9]+: ")
"""What xgrammar's messages begin with."""


class Grammars:
    """xgrammar's compiler for one model, which keeps what it compiled. Safe to call from several threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary, self._stop_ids = tokenizer, vocabulary, stop_ids
        self._lock = threading.Lock()
        self._compiler: Any = None

    def compile(self, grammar: Grammar) -> Any:
        """An xgrammar CompiledGrammar. Raises InvalidOptionError where it cannot be kept in full, or is none."""
        require_bounded(grammar)
        require_kept(grammar)
        compiler = self._made()
        try:
            match grammar.kind:
                case GrammarKind.JSON_SCHEMA:
                    return compiler.compile_json_schema(grammar.text)
                case GrammarKind.JSON_OBJECT:
                    return compiler.compile_json_schema('{"type": "object"}')
                case GrammarKind.REGEX:
                    return compiler.compile_regex(grammar.text)
                case GrammarKind.CHOICE:
                    return compiler.compile_grammar(choices_as_grammar(json.loads(grammar.text)))
                case GrammarKind.EBNF if _LARK_RULE.search(grammar.text) and "::=" not in grammar.text:
                    return compiler.compile_lark(grammar.text)
                case GrammarKind.EBNF:
                    return compiler.compile_grammar(grammar.text)
                case GrammarKind.STRUCTURAL_TAG:
                    return compiler.compile_structural_tag(grammar.text)
        except Exception as error:  # xgrammar raises what its parsers do
            said = _TIME_AND_PLACE.sub("", str(error)).strip()[:300]
            raise InvalidOptionError(f"the {grammar.kind} cannot be compiled: {said}", "grammar") from error

    def _made(self) -> Any:
        """The compiler, made when a request first asks for it: it takes some seconds."""
        with self._lock:
            if self._compiler is None:
                import xgrammar

                info = xgrammar.TokenizerInfo.from_huggingface(
                    self._tokenizer, vocab_size=self._vocabulary, stop_token_ids=sorted(self._stop_ids)
                )
                self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_limit_bytes=CACHE_BYTES)
            return self._compiler


def choices_as_grammar(choices: Sequence[str]) -> str:
    """An EBNF grammar of some texts. JSON's way to write a string is EBNF's too, but for one control character."""
    return "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") for text in choices)


def require_kept(grammar: Grammar) -> None:
    """Raises InvalidOptionError naming what a JSON schema asks for and xgrammar would leave out in silence."""
    if grammar.kind is GrammarKind.JSON_SCHEMA and (keyword := _left_out(json.loads(grammar.text))):
        raise InvalidOptionError(
            f"the schema's {keyword} is nothing that this engine can keep; leave it out", "grammar"
        )


_FORMATS = (
    *("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"),
    *("uri-template", "json-pointer", "relative-json-pointer"),
)
_NEVER = (
    *("not", "if", "then", "else", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains"),
    *("dependentRequired", "dependentSchemas"),
)
_BOUNDS = (
    *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minItems", "maxItems", "required", "minProperties", "maxProperties"),
)
_INSTEAD = ("$ref", "anyOf", "oneOf", "allOf")
"""Where one of these is, xgrammar looks at nothing beside it."""
_TYPED = ("type", "properties", "items", "prefixItems", "enum", "const")
"""Where none of these is, xgrammar takes a schema for any value."""
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
"""Keywords whose value is a mapping of names to schemas: the names are no keywords."""
_NO_SCHEMA = ("enum", "const", "default", "examples")


def _left_out(schema: object) -> str | None:
    """The first thing in a schema that xgrammar 0.2 ignores, by itself or beside another."""
    if isinstance(schema, list):
        return next((found for each in schema if (found := _left_out(each))), None)
    if not isinstance(schema, dict):
        return None
    if found := _ignored_here(schema):
        return found
    for keyword, value in schema.items():
        if keyword not in _NO_SCHEMA:
            inner = list(value.values()) if keyword in _BY_NAME and isinstance(value, dict) else value
            if found := _left_out(inner):
                return found
    return None


def _ignored_here(schema: Mapping[str, object]) -> str | None:
    if ignored := [keyword for keyword in _NEVER if keyword in schema]:
        return repr(ignored[0])
    bounds = [keyword for keyword in _BOUNDS if keyword in schema]
    instead = [keyword for keyword in _INSTEAD if keyword in schema]
    if instead and (beside := [*bounds, *(keyword for keyword in _BY_NAME[::3] if keyword in schema)]):
        return f"{beside[0]!r} beside {instead[0]!r}"
    if bounds and not any(keyword in schema for keyword in _TYPED):
        return f"{bounds[0]!r} without a 'type'"
    if "format" in schema and schema["format"] not in _FORMATS:
        return "'format' of an unknown name"
    names = schema.get("propertyNames")
    for each in (schema, names if isinstance(names, dict) else {}):
        if ("pattern" in each or "format" in each) and ("minLength" in each or "maxLength" in each):
            return "length beside a 'pattern' or 'format'"
    if names is not None and ("properties" in schema or "patternProperties" in schema):
        return "'propertyNames' beside other properties"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and ("properties" in schema or len(patterns) > 1):
        return "'patternProperties' beside other properties"
    if isinstance(every := schema.get("allOf"), list) and len(every) > 1:
        return "'allOf' of several schemas"
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        return "'$ref' to another document"
    return None
