"""Tools in a chat request: what reaches the engine, what is refused, and calls in whole answers."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from guards.core.verdict import Stage
from server.engines.events import Chunk as Piece
from server.engines.events import Finish, FinishReason, TokenLogprob
from server.engines.request import COMMON_OPTIONS, Grammar, GrammarKind, Message, Sampling, ToolPlan
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.engines.scripted.tools import ScriptedToolParser
from server.engines.tools import Tool, ToolCall, ToolChoice, ToolUse
from tests.server.harness import CHAT, CHECKS, MODEL, chat, serving

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
SCHEMA = {"type": "object", "properties": {"city": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Looks out.", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "clock"}}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def engine(*pieces: str, reason: FinishReason = FinishReason.STOP) -> ScriptedEngine:
    return ScriptedEngine([Script(answer(*pieces, reason=reason))])


def named(name: object, **fields: object) -> dict[str, object]:
    return chat(tools=[{"type": "function", "function": {"name": name, **fields}}])


def called(name: str, arguments: str, id: str) -> dict[str, object]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("fields", "choice", "name", "parallel"),
    [
        ({}, ToolChoice.AUTO, None, True),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolChoice.AUTO, None, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolChoice.AUTO, None, False),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ToolChoice.REQUIRED, None, True),
        ({"tool_choice": NAMED}, ToolChoice.NAMED, "clock", True),
        ({"response_format": {"type": "text"}}, ToolChoice.AUTO, None, True),
    ],
)
async def test_what_reaches_the_engine(
    fields: dict[str, object], choice: ToolChoice, name: str | None, parallel: bool
) -> None:
    async with serving() as served:
        response = await served.post(CHAT, chat(tools=TOOLS, **fields))
        assert response.status_code == 200, response.text
        tools = (Tool("weather", "Looks out.", SCHEMA), Tool("clock"))
        assert served.engine.tool_uses == [ToolUse(tools, choice, name, parallel)]
        expected = served.engine.encode_chat([Message("user", "hi")], tools)
        assert served.engine.submitted[0].prompt_token_ids == expected


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "none"}])
async def test_where_nothing_may_be_called_no_tool_is_shown(fields: dict[str, object]) -> None:
    """And what looks like a call is text."""
    async with serving(engine("[[clock|{}]]")) as served:
        body = (await served.post(CHAT, chat(**fields, response_format={"type": "json_object"}))).json()
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "[[clock|{}]]", "refusal": None}
        assert body["choices"][0]["finish_reason"] == "stop"
        assert served.engine.tool_uses == []
        assert served.engine.submitted[0].prompt_token_ids == served.engine.encode_chat([Message("user", "hi")])


async def test_plan_of_the_engine() -> None:
    scripted = engine("[[clock|{}]]")
    grammar = Grammar(GrammarKind.JSON_SCHEMA, "{}")
    scripted.tool_plan = ToolPlan(ScriptedToolParser, grammar, special_tokens=True)
    async with serving(scripted) as served:
        await served.post(CHAT, chat(tools=TOOLS, tool_choice="required", max_tokens=9))
        await served.post(CHAT, chat(max_tokens=9))
        with_tools, without = scripted.submitted
        assert (with_tools.sampling, with_tools.special_tokens) == (Sampling(9, grammar=grammar), True)
        assert (without.sampling, without.special_tokens) == (Sampling(9), False)


async def test_history() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, called("clock", "", "b")]},
        {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "30"}],
            "tool_call_id": "b",
        },
        {"role": "assistant", "content": "I see", "tool_calls": []},
    ]
    calls = (ToolCall("a", "weather", '{"city": "Rome"}'), ToolCall("b", "clock", "{}"))
    expected = [
        Message("user", "hi"),
        Message("assistant", "", calls),
        Message("tool", "sunny", tool_call_id="a"),
        Message("tool", "12\n30", tool_call_id="b"),
        Message("assistant", "I see"),
    ]
    async with serving() as served:
        response = await served.post(CHAT, {"model": MODEL, "messages": messages})
        assert response.status_code == 200, response.text
        assert served.engine.submitted[0].prompt_token_ids == served.engine.encode_chat(expected)
        checked = (await served.post(CHECKS, {"model": MODEL, "messages": messages})).json()
        assert checked["prompt_tokens"] == len(served.engine.encode_chat(expected))


def calling(**function: object) -> dict[str, object]:
    call = {**CALL, "function": {"name": "f", "arguments": "{}", **function}}
    return {"model": MODEL, "messages": [{"role": "assistant", "tool_calls": [call]}]}


def saying(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [fields]}


FUNCTION = "tools[0].function"
CALLED = "messages[0].tool_calls[0]"
INVALID: list[tuple[dict[str, object], str, str]] = [
    # body, param, part of the message
    (chat(tools={}), "tools", "valid list; got an object."),
    (chat(tools=["f"]), "tools[0]", "it should be an object; got the string 'f'."),
    (chat(tools=[{}]), "tools[0].type", "is missing"),
    (chat(tools=[{"type": "function"}]), FUNCTION, "is missing"),
    (chat(tools=[{"type": "code_interpreter"}]), "tools[0].type", "it should be 'function'"),
    (chat(tools=[{**CLOCK, "mood": 1}]), "tools[0].mood", "is not a field"),
    (chat(tools=[{"type": "function", "function": {}}]), f"{FUNCTION}.name", "is missing"),
    (named(3), f"{FUNCTION}.name", "valid string; got 3."),
    (named(""), f"{FUNCTION}.name", "1 to 64 letters"),
    (named("a b"), f"{FUNCTION}.name", "1 to 64 letters"),
    (named("f\n"), f"{FUNCTION}.name", "1 to 64 letters"),
    (named("f" * 65), f"{FUNCTION}.name", "1 to 64 letters"),
    (named("<|end|>"), f"{FUNCTION}.name", "1 to 64 letters"),
    (named("f", description=5), f"{FUNCTION}.description", "valid string"),
    (named("f", strict="yes"), f"{FUNCTION}.strict", "valid boolean"),
    (named("f", parameters="{}"), f"{FUNCTION}.parameters", "an object, a JSON schema; got the string '{}'."),
    (named("f", parameters=[]), f"{FUNCTION}.parameters", "an object, a JSON schema"),
    (named("f", defer_loading=True), f"{FUNCTION}.defer_loading", "is not a field"),
    (chat(tools=[CLOCK, CLOCK]), "tools", "one name"),
    (chat(tools=[CLOCK] * 129), "tools", "at most 128 items"),
    (chat(tools=[], tool_choice="required"), "tool_choice", "only allowed together with 'tools'."),
    (chat(tool_choice=NAMED), "tool_choice", "only allowed together with 'tools'."),
    (chat(tools=TOOLS, parallel_tool_calls="no"), "parallel_tool_calls", "valid boolean"),
    (chat(tools=TOOLS, tool_choice="any"), "tool_choice", "\"none\", \"auto\", \"required\" or {"),
    (chat(tools=TOOLS, tool_choice=True), "tool_choice", "\"required\" or {"),
    (chat(tools=TOOLS, tool_choice={"type": "auto"}), "tool_choice", "\"required\" or {"),
    (chat(tools=TOOLS, tool_choice={}), "tool_choice.type", "is missing"),
    (chat(tools=TOOLS, tool_choice={"type": "function"}), "tool_choice.function", "goes with 'type': 'function'."),
    (chat(tools=TOOLS, tool_choice={"type": "allowed_tools"}), "tool_choice.type", "it should be"),
    (chat(tools=TOOLS, tool_choice={**NAMED, "x": 1}), "tool_choice.x", "is not a field"),
    (chat(tools=[WEATHER], tool_choice=NAMED), "tool_choice", "should name one of the 'tools'."),
    (chat(tools=TOOLS, response_format={"type": "json_object"}), "response_format", "send one of them, or"),
    (chat(tools=TOOLS, structured_outputs={"regex": "a"}), "structured_outputs", "send one of them, or"),
    (saying(role="tool", content="x"), "messages[0].tool_call_id", "goes with a message of the role 'tool'"),
    (saying(role="user", content="x", tool_call_id="a"), "messages[0].tool_call_id", "and with no other."),
    (saying(role="tool", tool_call_id="a"), "messages[0].content", "Each message needs 'content'"),
    (saying(role="tool", content="x", tool_call_id=""), "messages[0].tool_call_id", "at least 1 character"),
    (saying(role="user", content="x", tool_calls=[CALL]), "messages[0].tool_calls", "Only an assistant's message"),
    (saying(role="function", content="x"), "messages[0].name", "needs 'name', the function's"),
    (saying(role="function", content="x", name=""), "messages[0].name", "at least 1 character"),
    (saying(role="user", content="x", function_call={"name": "f"}), "messages[0].function_call", "Only an assistant's"),
    (saying(role="assistant", function_call={}), "messages[0].function_call.name", "is missing"),
    (saying(role="assistant", function_call={"name": "f"}, tool_calls=[CALL]), "messages[0].function_call", "older"),
    (saying(role="assistant", tool_calls=[{}]), f"{CALLED}.function", "is missing"),
    (saying(role="assistant", tool_calls=[{**CALL, "type": "custom"}]), f"{CALLED}.type", "it should be 'function'"),
    (calling(name=3), f"{CALLED}.function.name", "valid string; got 3."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), INVALID)
async def test_invalid_field(body: dict[str, object], param: str, says: str) -> None:
    async with serving() as served:
        error = await served.error(CHAT, body)
        assert (error["status"], error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == ("invalid_value", param), error
        assert says in error["message"]
        assert served.engine.submitted == []


FORCED = frozenset({ToolChoice.REQUIRED, ToolChoice.NAMED})


@pytest.mark.parametrize(
    ("choices", "body", "param"),
    [
        (frozenset(), chat(tools=TOOLS), "tools"),
        (frozenset(), chat(tools=TOOLS, tool_choice="none"), "tools"),
        (frozenset(), {**calling(), "tools": TOOLS}, "tools"),
        (frozenset(), calling(), "messages[0].tool_calls"),
        (frozenset(), saying(role="tool", content="x", tool_call_id="a"), "messages[0].role"),
        (FORCED, chat(tools=TOOLS), "tool_choice"),
        (FORCED, chat(tools=TOOLS, tool_choice="auto"), "tool_choice"),
    ],
)
async def test_engine_that_does_not_honour_tools(
    choices: frozenset[ToolChoice], body: dict[str, object], param: str
) -> None:
    async with serving(ScriptedEngine(options=COMMON_OPTIONS, tool_choices=choices)) as served:
        for path in {CHAT, CHECKS} if "messages" in param else {CHAT}:
            error = await served.error(path, body)
            assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)
        assert served.engine.submitted == []


CALLS: list[tuple[str, str | None, list[dict[str, object]]]] = [
    # what the model wrote, content, calls
    ("Hello.", "Hello.", []),
    ("", "", []),
    ("[[clock|{}]]", None, [called("clock", "{}", "call_0")]),
    ('Look: [[weather|{"city": "Rome"}]]', "Look: ", [called("weather", '{"city": "Rome"}', "call_0")]),
    ("[[clock|{}]][[clock|{}]]", None, [called("clock", "{}", "call_0"), called("clock", "{}", "call_1")]),
    ("[[clo", "[[clo", []),
    ('[[weather|{"ci', None, [called("weather", '{"ci', "call_0")]),
]


@pytest.mark.parametrize(("text", "content", "calls"), CALLS)
@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_calls(text: str, content: str | None, calls: list[dict[str, object]], reason: FinishReason) -> None:
    async with serving(engine(*text, reason=reason)) as served:
        body = (await served.post(CHAT, chat(tools=TOOLS, n=2))).json()
        ChatCompletion.model_validate(body, strict=True)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        ended = "tool_calls" if calls and reason is FinishReason.STOP else reason.value
        assert [choice["message"] for choice in body["choices"]] == [message] * 2
        assert [choice["finish_reason"] for choice in body["choices"]] == [ended] * 2


async def test_logprobs_cover_calls() -> None:
    drawn = tuple(TokenLogprob(token, token.encode(), -0.5) for token in ("[[", "clock|{}", "]]"))
    pieces = tuple(Piece(each.token, 1, (each,)) for each in drawn)
    scripted = ScriptedEngine([Script((*pieces, Finish(FinishReason.STOP, 0, 3, verified=True)))])
    async with serving(scripted) as served:
        choice = (await served.post(CHAT, chat(tools=TOOLS, logprobs=True))).json()["choices"][0]
        assert choice["message"]["tool_calls"] == [called("clock", "{}", "call_0")]
        assert [each["token"] for each in choice["logprobs"]["content"]] == ["[[", "clock|{}", "]]"]


@pytest.mark.parametrize(
    ("style", "reason", "shown_as"), [("content_filter", "content_filter", "content"), ("refusal", "stop", "refusal")]
)
@pytest.mark.parametrize("written", [(), ("[[clo",), ("Look: ", "[[clock|{}]]"), ("[[clock|{}]]", "[[clock|")])
async def test_an_abstained_answer_calls_nothing(
    written: tuple[str, ...], style: str, reason: str, shown_as: str
) -> None:
    stage = Stage.GENERATION if written else Stage.PROMPT
    scripted = ScriptedEngine([Script(abstention(hit(guard(), stage), *written))])
    async with serving(scripted, abstain_style=style, abstain_text=TEXT) as served:
        response = await served.post(CHAT, chat(tools=TOOLS))
        choice = response.json()["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, shown_as: TEXT}
        assert choice["finish_reason"] == reason
        assert "clo" not in response.text
        # Positive control: without a hit the same text calls.
        scripted.scripts = [Script(answer("Look: ", "[[clock|{}]]"))]
        choice = (await served.post(CHAT, chat(tools=TOOLS))).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"


async def test_error_style() -> None:
    scripted = ScriptedEngine([Script(abstention(hit(guard(), Stage.GENERATION), "[[clock|{}]]"))])
    async with serving(scripted, abstain_style="error") as served:
        error = await served.error(CHAT, chat(tools=TOOLS, tool_choice="required"))
        assert (error["status"], error["code"]) == (400, "skill_abstained")
