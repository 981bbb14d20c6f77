"""What is refused before any compiler sees it. What compilers then take is in the tests of each engine."""

import json

import pytest

from server.engines.errors import InvalidOptionError
from server.engines.grammars import MAX_SIGNS, require_bounded
from server.engines.request import Grammar, GrammarKind

MANY = "a*" * (MAX_SIGNS + 1)


def schema(document: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(document))


TOO_MUCH = [
    Grammar(GrammarKind.REGEX, MANY),
    Grammar(GrammarKind.REGEX, "(a|b)*" * 10_000),
    Grammar(GrammarKind.REGEX, "(|a)" * (MAX_SIGNS + 1)),
    schema({"type": "object", "properties": {"pattern": {"type": "string", "pattern": MANY}}}),
    schema({"type": "object", "patternProperties": {MANY: {}}}),
    schema({"$ref": "#/default", "default": {"type": "string", "pattern": MANY}}),
    schema({"x-guidance": {"whitespace_pattern": MANY}, "type": "object"}),
    schema({"x-guidance": {"item_separator": MANY}, "type": "array"}),
    Grammar(GrammarKind.JSON_SCHEMA, f'{{"type": "string", "pattern": "{MANY}", "x": {"1" * 5000}}}'),
    schema([{"type": "string", "pattern": "a*" * 100 + str(index)} for index in range(30)]),
    Grammar(GrammarKind.STRUCTURAL_TAG, json.dumps({"format": {"type": "regex", "pattern": MANY}})),
]


@pytest.mark.parametrize("grammar", TOO_MUCH, ids=range(len(TOO_MUCH)))
def test_a_pattern_of_many_parts_that_may_be_left_out(grammar: Grammar) -> None:
    with pytest.raises(
        InvalidOptionError, match=r"as much work as a pattern with \d+ .*; wanted at most 500: "
    ) as error:
        require_bounded(grammar)
    assert error.value.param == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.REGEX, "a*" * MAX_SIGNS),
        Grammar(GrammarKind.REGEX, "|".join(f"word {index}" for index in range(5000))),
        schema({"enum": [f"{index} (or not?)" for index in range(3000)]}),
        schema({"description": MANY, "properties": {f"p{index}": {"type": "string"} for index in range(2000)}}),
        schema([{"type": "string", "pattern": r"^([a-z]{1,1000}\.)*(x|y)?" + str(index)} for index in range(500)]),
        Grammar(GrammarKind.CHOICE, json.dumps([MANY])),
        Grammar(GrammarKind.JSON_SCHEMA, "no JSON"),
    ],
    ids=range(7),
)
def test_what_takes_no_such_work_passes(grammar: Grammar) -> None:
    require_bounded(grammar)
