"""vLLM's tool-call parsers as ours, on texts: no model runs."""

import json
import logging
from typing import Any

import pytest

from server.engines.errors import UnsupportedOptionError
from server.engines.request import GrammarKind, ToolPlan
from server.engines.tools import Parsed, ParsedPiece, Tool, ToolCall, ToolChoice, ToolUse
from tests.guards.model.test_encoding import tokenizer

CITY: dict[str, object] = {"type": "object", "properties": {"city": {"$ref": "#/$defs/c"}}, "required": ["city"]}
WEATHER = Tool("weather", "Looks out.", {**CITY, "$defs": {"c": {"type": "string"}}})
CLOCK = Tool("clock")
TOOLS = (WEATHER, CLOCK)


@pytest.fixture(scope="module")
def make() -> Any:
    """Makes the tools of a parser."""
    from server.engines.vllm.tools import VllmTools

    return lambda parser: VllmTools(parser, tokenizer())


def use(choice: ToolChoice = ToolChoice.AUTO, *, parallel: bool = True, tools: tuple[Tool, ...] = TOOLS) -> ToolUse:
    return ToolUse(tools, choice, "weather" if choice is ToolChoice.NAMED else None, parallel)


def streamed(plan: ToolPlan, text: str, size: int) -> Parsed:
    """A text read in pieces, put together as clients do."""
    parser, content = plan.parser(), ""
    calls: list[ToolCall] = []
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    for index, part in enumerate([*parts, ""]):
        piece = parser.push(part, tuple(part.encode()), final=index == len(parts))
        content += piece.content
        for each in piece.calls:
            if each.id is not None:
                assert (each.index, bool(each.name)) == (len(calls), True)
                calls.append(ToolCall(each.id, each.name or "", ""))
            said = calls[each.index]
            calls[each.index] = ToolCall(said.id, said.name, said.arguments + each.arguments)
    return Parsed(content, tuple(calls))


def told(parsed: Parsed) -> tuple[str, list[tuple[str, object]]]:
    """Content and calls, with arguments as JSON where they are."""

    def read(arguments: str) -> object:
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments

    assert all(call.id for call in parsed.calls)
    assert len({call.id for call in parsed.calls}) == len(parsed.calls)
    return parsed.content, [(call.name, read(call.arguments)) for call in parsed.calls]


ROME, OSLO = {"city": "Rome"}, {"city": 'O\u00f8 } " slo'}


def hermes(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


READ: list[tuple[str, str, str, list[tuple[str, object]]]] = [
    # parser, what the model wrote, content, calls
    ("hermes", "", "", []),
    ("hermes", "Hello.", "Hello.", []),
    ("hermes", "a < b and <tool", "a < b and <tool", []),
    ("hermes", hermes("weather", ROME), "", [("weather", ROME)]),
    ("hermes", "Look: " + hermes("weather", OSLO), "Look: ", [("weather", OSLO)]),
    ("hermes", hermes("weather", ROME) + hermes("clock", {}), "", [("weather", ROME), ("clock", {})]),
    ("qwen3_coder", "Hello.", "Hello.", []),
    (
        "qwen3_coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", ROME)],
    ),
    ("pythonic", "Hello.", "Hello.", []),
    ("pythonic", "[weather(city='Rome'), clock()]", "", [("weather", ROME), ("clock", {})]),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("parser", "text", "content", "calls"), READ)
def test_calls_that_the_model_chose(
    make: Any, parser: str, text: str, content: str, calls: list[tuple[str, object]], size: int
) -> None:
    plan = make(parser).plan(use())
    assert plan.grammar is None
    assert told(plan.parser().whole(text)) == (content, calls)
    assert told(streamed(plan, text, size)) == (content, calls)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_one_call_where_more_are_not_wanted(make: Any, size: int) -> None:
    text = hermes("weather", ROME) + hermes("clock", {})
    plan = make("hermes").plan(use(parallel=False))
    assert told(plan.parser().whole(text)) == ("", [("weather", ROME)])
    assert told(streamed(plan, text, size)) == ("", [("weather", ROME)])


BROKEN = ['<tool_call>{"name": "weather", "arguments": {"city": "Ro', "<tool_call>weather</tool_call>", "<tool_call>"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_whole_answer_that_cannot_be_read_is_text(make: Any, text: str) -> None:
    assert make("hermes").plan(use()).parser().whole(text) == Parsed(text)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_streamed_answer_that_cannot_be_read(make: Any, size: int) -> None:
    """What has begun as a call stays one; what has not is text."""
    plan = make("hermes").plan(use())
    assert told(streamed(plan, BROKEN[0], size)) == ("", [("weather", '{"city": "Ro')])
    for text in BROKEN[1:]:
        assert streamed(plan, text, size) == Parsed(text)


REQUIRED = json.dumps([{"name": "weather", "parameters": OSLO}, {"name": "clock", "parameters": {}}])


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("parser", [None, "hermes", "pythonic", "qwen3_coder"])
def test_forced_calls_are_json_whatever_the_parser(make: Any, parser: str | None, size: int) -> None:
    tools = make(parser)
    required, named = tools.plan(use(ToolChoice.REQUIRED)), tools.plan(use(ToolChoice.NAMED))
    for read in required.parser().whole(REQUIRED), streamed(required, REQUIRED, size):
        assert told(read) == ("", [("weather", OSLO), ("clock", {})])
    for read in named.parser().whole(json.dumps(ROME)), streamed(named, json.dumps(ROME), size):
        assert told(read) == ("", [("weather", ROME)])
    assert not required.special_tokens
    assert not named.special_tokens


def test_forced_calls_that_were_cut_short(make: Any) -> None:
    tools = make(None)
    required, named = tools.plan(use(ToolChoice.REQUIRED)), tools.plan(use(ToolChoice.NAMED))
    assert required.parser().whole(REQUIRED[:30]) == Parsed(REQUIRED[:30])
    assert told(streamed(required, REQUIRED[:45], 3))[1][0][0] == "weather"
    assert told(named.parser().whole('{"ci')) == ("", [("weather", '{"ci')])
    assert told(streamed(named, '{"ci', 1)) == ("", [("weather", '{"ci')])
    assert named.parser().whole("") == streamed(named, "", 1) == Parsed("")
    assert named.parser().push("", (2,), final=False) == ParsedPiece()


def test_schemas_of_forced_calls(make: Any) -> None:
    tools = make(None)
    schema = json.loads(tools.plan(use(ToolChoice.REQUIRED)).grammar.text)
    assert (schema["type"], schema["minItems"], "maxItems" in schema) == ("array", 1, False)
    assert [each["properties"]["name"]["enum"] for each in schema["items"]["anyOf"]] == [["weather"], ["clock"]]
    assert schema["items"]["anyOf"][0]["properties"]["parameters"] == CITY
    assert schema["$defs"] == {"c": {"type": "string"}}
    assert json.loads(tools.plan(use(ToolChoice.REQUIRED, parallel=False)).grammar.text)["maxItems"] == 1
    named = tools.plan(use(ToolChoice.NAMED)).grammar
    assert (named.kind, json.loads(named.text)) == (GrammarKind.JSON_SCHEMA, WEATHER.parameters)
    assert WEATHER.parameters == {**CITY, "$defs": {"c": {"type": "string"}}}, "the request's own is left alone"


def test_definitions_that_two_tools_share_by_name(make: Any) -> None:
    other = Tool("other", None, {"type": "object", "$defs": {"c": {"type": "integer"}}})
    with pytest.raises(UnsupportedOptionError, match="multiple schemas") as caught:
        make(None).plan(use(ToolChoice.REQUIRED, tools=(WEATHER, other)))
    assert caught.value.param == "tools"


def test_strict_tools(make: Any) -> None:
    """Where the model chooses, only a parser that has a grammar for its calls can keep them to a schema."""
    strict = (CLOCK, Tool("weather", None, WEATHER.parameters, strict=True))
    grammar = make("hermes").plan(use(tools=strict)).grammar
    assert grammar.kind is GrammarKind.STRUCTURAL_TAG
    assert "weather" in json.dumps(json.loads(grammar.text))
    with pytest.raises(UnsupportedOptionError, match="keep arguments to their schema") as caught:
        make("pythonic").plan(use(tools=strict))
    assert caught.value.param == "tools[1].function.strict"
    assert make("pythonic").plan(use(ToolChoice.REQUIRED, tools=strict)).grammar is not None


def test_what_can_be_honoured(make: Any) -> None:
    assert make("hermes").choices == frozenset(ToolChoice)
    assert make(None).choices == {ToolChoice.REQUIRED, ToolChoice.NAMED}


@pytest.mark.parametrize(("parser", "special"), [("hermes", True), ("pythonic", False), ("qwen3_coder", True)])
def test_special_tokens_are_kept_for_parsers_that_read_them(make: Any, parser: str, special: bool) -> None:
    assert make(parser).plan(use()).special_tokens is special


@pytest.mark.parametrize(
    ("parser", "says"),
    [
        ("herms", "got 'herms', wanted one of .*hermes, "),
        ("llama3_json", "llama3_json: not with this model: .*python_tag"),
        ("openai", "openai: not with this model: .*stub"),
    ],
)
def test_parsers_that_are_refused_at_start(make: Any, parser: str, says: str) -> None:
    from server.engines.errors import EngineFlagError

    with pytest.raises(EngineFlagError, match=says):
        make(parser)


class Failing:
    """A parser of vLLM's that breaks: whole, or at the n-th delta."""

    def __init__(self, parser: Any, at: int, whole: bool) -> None:
        self._parser, self._at, self._whole = parser, at, whole

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        if self._whole:
            raise RuntimeError("a regular expression ran for ever")
        return self._parser.parse(*args, **kwargs)

    def parse_delta(self, *args: Any, **kwargs: Any) -> Any:
        self._at -= 1
        if self._at < 0:
            raise RuntimeError("no")
        return self._parser.parse_delta(*args, **kwargs)


@pytest.mark.parametrize("at", [0, 1, 7, 20])
@pytest.mark.parametrize("whole", [False, True])
def test_a_failing_parser_loses_nothing(make: Any, at: int, whole: bool, caplog: pytest.LogCaptureFixture) -> None:
    from server.engines.vllm.tools import VllmToolParser

    tools = make("hermes")
    text = "Look: " + hermes("weather", ROME)

    def broken() -> tuple[Any, Any]:
        parser, request = tools._make(tools._auto, use())
        return Failing(parser, at, whole), request

    plan = ToolPlan(lambda: VllmToolParser(broken, True))
    with caplog.at_level(logging.ERROR, "skillguard.server"):
        assert told(plan.parser().whole(text)) == ((text, []) if whole else ("Look: ", [("weather", ROME)]))
        content, calls = told(streamed(plan, text, 3))
    assert "the tool-call parser failed" in caplog.text
    if not whole:
        assert (content, calls) == ("Look: ", [("weather", ROME)])
    elif not calls:
        assert content == text
    else:
        assert (content, calls[0][0]) == ("Look: ", "weather")
