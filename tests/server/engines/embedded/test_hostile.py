"""Values that the embedded engine cannot work with, and schemas that it could not keep in full."""

import json
from collections.abc import Iterator

import pytest

from server.engines.base import FinishReason, Grammar, GrammarKind
from server.engines.errors import InvalidOptionError
from tests.server.engines.hostile import INVALID, refused
from tests.server.engines.vllm.live import OTHERS, Live, embedded, greedy, live

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def engine() -> Iterator[Live]:
    with live(embedded("ksd-mathematics")) as running:
        yield running


@pytest.mark.parametrize("name", INVALID)
def test_it_is_refused_and_the_others_go_on(engine: Live, name: str) -> None:
    refused(engine, name)
    assert engine.draw(OTHERS[:1], greedy(min_tokens=1))[0].finish.reason is FinishReason.STOP


def test_options_that_leave_no_token_end_their_answer_only(engine: Live) -> None:
    choice = Grammar(GrammarKind.CHOICE, '["a"]')
    answer = engine.draw(OTHERS[:1], greedy(grammar=choice, bad_words=("a",)))[0]
    assert answer.finish.reason is FinishReason.ERROR
    assert "leave no token" in (answer.finish.error or "")
    assert engine.draw(OTHERS[:1], greedy())[0].finish.reason is FinishReason.STOP


IGNORED: dict[str, object] = {
    "'not'": {"type": "string", "not": {"const": "a"}},
    "'if'": {"if": {"type": "string"}, "then": {"const": "x"}, "else": True},
    "'multipleOf'": {"type": "object", "properties": {"a": {"items": {"type": "integer", "multipleOf": 3}}}},
    "'uniqueItems'": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "'dependentRequired'": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "'maxLength' beside '\\$ref'": {"$ref": "#/$defs/x", "maxLength": 1, "$defs": {"x": {"type": "string"}}},
    "'properties' beside 'anyOf'": {"properties": {"a": {}}, "anyOf": [{"type": "object"}, {"type": "null"}]},
    "'maxLength' without a 'type'": {"anyOf": [{"maxLength": 1}]},
    "'format' of an unknown name": {"type": "string", "format": "colour"},
    "length beside a 'pattern'": {"type": "string", "pattern": "^a+$", "maxLength": 1},
    "'propertyNames' beside": {"type": "object", "propertyNames": {"pattern": "a"}, "properties": {"b": {}}},
    "'patternProperties' beside": {"type": "object", "patternProperties": {"a": {}, "b": {}}},
    "'allOf' of several": {"allOf": [{"type": "string"}, {"enum": ["a"]}]},
    "'\\$ref' to another document": {"$ref": "http://example.org/x"},
}


@pytest.mark.parametrize("what", IGNORED)
def test_what_the_compiler_would_ignore_is_refused(engine: Live, what: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"the schema's {what}"):
        engine.engine.prepare(greedy(grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(IGNORED[what]))))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "integer", "minimum": 3}}},
        {"$ref": "#/$defs/x", "description": "d", "$defs": {"x": {"type": "string", "maxLength": 3}}},
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "t"},
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"enum": ["not", "if"]}, "minItems": 1, "maxItems": 2},
        {"allOf": [{"type": "string"}], "examples": [{"not": 1}]},
        {"oneOf": [{"type": "integer"}, {"type": "string", "format": "date"}]},
    ],
)
def test_what_it_keeps_is_taken(engine: Live, schema: object) -> None:
    engine.engine.prepare(greedy(grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))))
