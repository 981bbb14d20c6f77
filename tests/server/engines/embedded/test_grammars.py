"""Grammars on the embedded engine: which texts each allows, and what is refused because it could not be kept."""

import json
from typing import Any

import pytest
import torch

from guards.model.encoding import TextCodec
from guards.model.folder import load_tokenizer
from server.engines.embedded import grammars as compiler
from server.engines.embedded.dialects import closed
from server.engines.embedded.grammars import Grammars
from server.engines.errors import InvalidOptionError
from server.engines.request import Grammar, GrammarKind
from tests.served import save_tiny_model
from tests.server.engines.embedded.grammars import END, STOP, STOPS, USER, V, matches, possible, schema

AB: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}
KEPT: list[tuple[object, list[object], list[object]]] = [
    (AB, [{"a": 1}, {"a": 1, "b": "x"}], [{}, {"a": "x"}, {"a": 1, "c": 1}]),
    ({**AB, "additionalProperties": True}, [{"a": 1, "c": 1}], [{}]),
    ({"type": "object", "properties": {"not": {"const": 1}, "if": {}}, "required": ["not"]}, [{"not": 1}], [{}]),
    ({"const": {"properties": {"a": 1}}}, [{"properties": {"a": 1}}], [{"properties": {}}]),
    (
        {"allOf": [AB, {"properties": {"c": {"type": "integer"}}, "required": ["c"]}]},
        [{"a": 1, "c": 2}],
        [{"a": 1}, {"c": 2}],
    ),
    ({"$ref": "#/$defs/x", "maxLength": 1, "$defs": {"x": {"type": "string"}}}, ["a"], ["ab", 1]),
    ({"anyOf": [{"maxLength": 1}]}, ["a", 1], ["ab"]),
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, ["aa"], ["aaa", "b"]),
    ({"type": "array", "items": {"type": "integer", "multipleOf": 3}}, [[], [3, 9]], [[4]]),
    ({"type": "array", "items": {"enum": ["not", "if"]}, "minItems": 1, "maxItems": 2}, [["if"]], [[], ["a"]]),
    ({"oneOf": [{"type": "integer"}, {"type": "string", "format": "date"}]}, [1, "2024-02-29"], ["x"]),
    ({"properties": {"a": {}}, "anyOf": [{"type": "object"}, {"type": "null"}]}, [None, {"a": 1}], [1]),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, [{"a": 1}], [{"a": "x"}]),
    ({"type": "object", "minProperties": 2}, [{"x": 1, "y": 2}], [{"x": 1}]),
]


@pytest.mark.parametrize("document", range(len(KEPT)))
def test_a_schema_is_kept(grammars: Grammars, codec: TextCodec, document: int) -> None:
    asked, good, bad = KEPT[document]
    for value in good:
        assert matches(grammars, codec, schema(asked), json.dumps(value)), value
    for value in bad:
        assert not matches(grammars, codec, schema(asked), json.dumps(value)), value


REFUSED: dict[str, object] = {
    '"not"': {"type": "string", "not": {"const": "a"}},
    '"if"': {"if": {"type": "string"}, "then": {"const": "x"}, "else": True},
    '"uniqueItems"': {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    '"contains"': {"type": "object", "properties": {"a": {"type": "array", "contains": {"type": "string"}}}},
    '"dependentRequired"': {"type": "object", "dependentRequired": {"a": ["b"]}},
    '"propertyNames"': {"type": "object", "propertyNames": {"pattern": "a"}, "properties": {"b": {}}},
    "Unknown format: colour": {"type": "string", "format": "colour"},
    "oneOf constraints are not supported": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "min/maxProperties only": {"properties": {"a": {}, "b": {}}, "minProperties": 2},
    "http://example.org/x": {"$ref": "http://example.org/x"},
    "look-around": {"type": "string", "pattern": "^(?=a)b"},
    "Unsatisfiable": {"type": "integer", "minimum": 2, "maximum": 1},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_could_not_be_kept_is_refused_by_name(grammars: Grammars, said: str) -> None:
    with pytest.raises(InvalidOptionError, match="the json_schema cannot be compiled: ") as refused:
        grammars.check(schema(REFUSED[said]))
    assert said in str(refused.value)
    assert refused.value.param == "grammar"


ODD = ['a "b"', "c\\d\n", "\x7f\t\x01é😀/"]
ALTERNATIVES = """root ::= # one or
  "a|b"
  | "b" # the other "
  | other
other ::= "c"
"""
ESCAPES = r'root ::= "\u00e912\x41\"\\\n\U0001f600" [\u0041-\u005a\x2d\x5d]'
TEXTS: list[tuple[GrammarKind, str, list[str], list[str]]] = [
    (GrammarKind.JSON_OBJECT, "", ["{}", '{"a": [1]}'], ["[]", "1"]),
    (GrammarKind.REGEX, "[0-9]{3}-[a-z]", ["123-a"], ["12-a", "123-ab"]),
    (GrammarKind.REGEX, 'a/b|"', ["a/b", '"'], ["a"]),
    (GrammarKind.CHOICE, json.dumps(["a", "ab"]), ["a", "ab"], ["b", "abb"]),
    (GrammarKind.CHOICE, json.dumps(ODD), ODD, ["a"]),
    (GrammarKind.CHOICE, json.dumps([f"word {index}" for index in range(3000)]), ["word 2999"], ["word"]),
    (GrammarKind.EBNF, 'start: "x" DIGIT # here\nDIGIT: /[0-9]/', ["x1"], ["xy"]),
    (GrammarKind.EBNF, '?start: sum\n?sum: N | sum "+" N\nN: /[0-9]/', ["1+2+3"], ["1+"]),
    (GrammarKind.EBNF, 'root ::= "x" [0-9] other\nother ::= "y"', ["x1y"], ["x1"]),
    (GrammarKind.EBNF, ALTERNATIVES, ["a|b", "b", "c"], ["a"]),
    (GrammarKind.EBNF, ESCAPES, ['é12A"\\\n😀B', 'é12A"\\\n😀-', 'é12A"\\\n😀]'], ["é", 'é12A"\\\n😀b']),
    (GrammarKind.EBNF, 'root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"', ["1+(2+3)"], ["1+(2"]),
]


@pytest.mark.parametrize("grammar", range(len(TEXTS)))
def test_a_grammar_is_kept(grammars: Grammars, codec: TextCodec, grammar: int) -> None:
    kind, text, good, bad = TEXTS[grammar]
    for each in good:
        assert matches(grammars, codec, Grammar(kind, text), each), each
    for each in bad:
        assert not matches(grammars, codec, Grammar(kind, text), each), each


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (GrammarKind.REGEX, r"[^\x00-\x{10FFFF}]", "the regex matches no text"),
        (GrammarKind.EBNF, "root ::= other", "Rule 'other' not found"),
        (GrammarKind.EBNF, 'root ::= "a', "Unexpected end of input"),
        (GrammarKind.EBNF, "start: <eos>", "unknown special token"),
        (GrammarKind.STRUCTURAL_TAG, "{}", "takes no structural tags"),
    ],
)
def test_what_is_no_grammar_is_refused(grammars: Grammars, kind: GrammarKind, text: str, said: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"the {kind} ") as refused:
        grammars.check(Grammar(kind, text))
    assert said in str(refused.value)


def test_an_answer_ends_where_its_grammar_is_complete(grammars: Grammars, codec: TextCodec) -> None:
    (digit,) = codec.encode_part("7")
    everything = grammars.match(Grammar(GrammarKind.REGEX, "(.|\n)*7"), STOPS)
    assert STOP not in possible(everything), "a stop token is no part of the text"
    with pytest.raises(ValueError, match=f"does not allow token {END}"):
        grammars.match(Grammar(GrammarKind.REGEX, "7"), STOPS).accept(END)
    with pytest.raises(ValueError, match=f"does not allow token {USER}"):
        grammars.match(Grammar(GrammarKind.REGEX, "7"), STOPS).accept(USER)
    match = grammars.match(Grammar(GrammarKind.REGEX, "7"), STOPS)
    assert digit in possible(match)
    match.accept(digit)
    assert possible(match) == STOPS
    match.accept(STOP)
    assert len(possible(match)) == V, "where the end is ignored, what follows it is free, as on vLLM"
    match.accept(USER)


def test_a_grammar_opens_no_turn(grammars: Grammars) -> None:
    for text in ("start: <|user|>", f"start: <[{USER}]>"):
        assert possible(grammars.match(Grammar(GrammarKind.EBNF, text), STOPS)) == set()
    assert possible(grammars.match(Grammar(GrammarKind.EBNF, "start: <[40]>"), STOPS)) == {40}


def test_one_grammar_serves_many_answers(grammars: Grammars, codec: TextCodec) -> None:
    grammar = Grammar(GrammarKind.CHOICE, '["7", "8"]')
    one, other = (grammars.match(grammar, STOPS) for _ in range(2))
    (token,) = codec.encode_part("7")
    one.accept(token)
    assert possible(one) == STOPS
    assert token in possible(other)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Any) -> None:
    tiny = TextCodec(load_tokenizer(save_tiny_model(tmp_path)))
    with pytest.raises(InvalidOptionError, match="llguidance cannot read this model's tokenizer"):
        Grammars(tiny, 64, frozenset({END})).check(Grammar(GrammarKind.JSON_OBJECT))


def test_objects_are_closed_where_no_part_rules_another_out() -> None:
    assert closed({"properties": {"properties": {"properties": {}}}, "const": {"properties": 1}}) == {
        "properties": {"properties": {"properties": {}, "additionalProperties": False}},
        "const": {"properties": 1},
        "additionalProperties": False,
    }
    apart: object
    for apart in ({"allOf": [{"properties": {}}, {}]}, {"properties": {}, "$ref": "#"}, True, {"anyOf": [{}]}):
        assert closed(json.loads(json.dumps(apart))) == apart


LETTERS = " | ".join(f'"{each}"' for each in "aeinsrtol")
AMBIGUOUS = Grammar(GrammarKind.EBNF, f'start: s\ns: s s | s s s | "" | {LETTERS}')


def test_a_grammar_of_many_readings_ends_its_own_answer(codec: TextCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token would take long, in the thread that draws everybody's."""
    (letter,) = codec.encode_part("a")

    def go_on() -> None:
        match = Grammars(codec, V, frozenset({END})).match(AMBIGUOUS, frozenset({END}))
        for _ in range(3):
            match.constrain(torch.zeros(V))
            match.accept(letter)

    with pytest.raises(ValueError, match=r"cannot be followed: .*Too many items"):
        go_on()
    monkeypatch.setattr(compiler, "MOST_ITEMS", 50_000)
    go_on()  # the control: by llguidance's own limit it goes on


@pytest.mark.parametrize("parts", ["A " * 20_000, "B " * 8])
def test_terminals_of_too_many_parts_are_refused(grammars: Grammars, parts: str) -> None:
    """Each could be left out, and one character would cost the square of their number, whenever it is drawn."""
    doubled = "".join(f"\n{after}: " + f"{before} " * 8 for before, after in zip("GFEDC", "FEDCB", strict=True))
    with pytest.raises(InvalidOptionError, match=r"the ebnf cannot be compiled: .*\(grammar\) too big"):
        grammars.check(Grammar(GrammarKind.EBNF, f'start: X\nX: "{40 * "x"}" {parts}\nA: /a?/\nG: /a?/ /b?/{doubled}'))


def test_words_of_any_script_are_no_such_parts(grammars: Grammars, codec: TextCodec) -> None:
    words = " | ".join(f'"keyword {index}"' for index in range(1000))
    grammar = Grammar(GrammarKind.EBNF, f"start: NAME | {words}\nNAME: /[\\p{{L}}_][\\p{{L}}\\p{{N}}_]*/")
    assert matches(grammars, codec, grammar, "keyword 999")
    followed = Grammar(GrammarKind.EBNF, f"start: /{'(a|b)*' * 250}/")
    assert matches(grammars, codec, followed, "abab"), "no vocabulary is followed through it within these steps"
