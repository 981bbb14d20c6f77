"""The conversation in a request: all that clients append to it is taken, and what is not read is never rendered."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from server.engines.request import COMMON_OPTIONS, Message
from server.engines.scripted.engine import ScriptedEngine
from server.engines.tools import ToolCall
from server.openai import tables
from server.openai.history import CallBody, CalledFunction, ChatMessage, HistoryBody, Part
from tests.server.harness import CHAT, CHECKS, MODEL, serving

pytestmark = pytest.mark.anyio

SECRET = "the caller's own text"
CALL = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
CLOCK_ID = "d8198efa3"
"""What is made of the name "clock"."""


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(**fields: object) -> dict[str, object]:
    return {"role": "assistant", **fields}


def calling(**function: object) -> dict[str, object]:
    return assistant(content=None, tool_calls=[{**CALL, "function": {"name": "clock", **function}}])


def called(arguments: str, name: str = "clock", id: str = "a") -> Message:
    return Message("assistant", "", (ToolCall(id, name, arguments),))


def wrapped(text: str) -> str:
    return json.dumps({"arguments": text}, ensure_ascii=False)


DEEP = '{"a":' * 65 + "1" + "}" * 65
TAKEN: dict[str, tuple[dict[str, object], Message]] = {
    # one message, and what the chat template is shown of it
    "openai create": (
        assistant(content="no", refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None),
        Message("assistant", "no"),
    ),
    "openai parse": (assistant(content="no", refusal=None, parsed=None), Message("assistant", "no")),
    "openai parse, parsed": (assistant(content='{"a":1}', parsed={"a": 1}), Message("assistant", '{"a":1}')),
    "openai stream, a call": (
        assistant(
            content=None,
            parsed=None,
            tool_calls=[
                {
                    "id": "a",
                    "index": 0,
                    "type": "function",
                    "function": {"name": "clock", "arguments": "{}", "parsed_arguments": {}},
                }
            ],
        ),
        called("{}"),
    ),
    "openai responses": (
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "no", "annotations": [], "logprobs": []}],
        },
        Message("assistant", "no"),
    ),
    "input_text": (user([{"type": "input_text", "text": "hi"}]), Message("user", "hi")),
    "litellm": (
        assistant(content="no", tool_calls=None, function_call=None, provider_specific_fields={"refusal": None}),
        Message("assistant", "no"),
    ),
    "vllm": (assistant(content="no", reasoning=None, reasoning_content=None), Message("assistant", "no")),
    "reasoning": (assistant(content="no", reasoning_content="hm", reasoning="hm"), Message("assistant", "no")),
    "anthropic": (
        user([{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]),
        Message("user", "hi"),
    ),
    "anthropic thinking": (
        assistant(
            content=[
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "reasoning", "text": "hm"},
                {"type": "text", "text": "no"},
            ]
        ),
        Message("assistant", "no"),
    ),
    "gemini": (
        assistant(tool_calls=[{**CALL, "extra_content": {"google": {"thought_signature": "x"}}}]),
        called("{}"),
    ),
    "a name": ({"role": "user", "content": "hi", "name": "ann"}, Message("user", "hi")),
    "a system's name": ({"role": "system", "content": "hi", "name": "ann"}, Message("system", "hi")),
    "an odd name": ({"role": "user", "content": "hi", "name": 5}, Message("user", "hi")),
    "a tool's name": (
        {"role": "tool", "content": "12", "tool_call_id": "a", "name": "clock"},
        Message("tool", "12", tool_call_id="a"),
    ),
    "developer": ({"role": "developer", "content": "hi"}, Message("system", "hi")),
    "no content": (assistant(), Message("assistant", "")),
    "content null": (assistant(content=None), Message("assistant", "")),
    "no parts": (assistant(content=[]), Message("assistant", "")),
    "nothing at all": (
        assistant(content=None, refusal=None, tool_calls=[], function_call=None),
        Message("assistant", ""),
    ),
    "refusal": (assistant(content=None, refusal="never"), Message("assistant", "never")),
    "refusal of no content": (assistant(content="", refusal="never"), Message("assistant", "never")),
    "refusal alone": (assistant(refusal="never"), Message("assistant", "never")),
    "empty refusal": (assistant(content="no", refusal=""), Message("assistant", "no")),
    "refusal twice": (assistant(content="never", refusal="never"), Message("assistant", "never")),
    "refusal at the end": (assistant(content="Take\n\nnever", refusal="never"), Message("assistant", "Take\n\nnever")),
    "refusal after a beginning": (assistant(content="Take", refusal="never"), Message("assistant", "Take\n\nnever")),
    "refusal part": (assistant(content=[{"type": "refusal", "refusal": "never"}]), Message("assistant", "never")),
    "parts of both kinds": (
        assistant(content=[{"type": "text", "text": "no"}, {"type": "refusal", "refusal": "never"}]),
        Message("assistant", "no\nnever"),
    ),
    "keys of the other kind": (
        user([{"type": "text", "text": "hi", "refusal": 5}, {"type": "refusal", "refusal": "no", "text": None}]),
        Message("user", "hi\nno"),
    ),
    "nulls where nothing belongs": (
        {"role": "user", "content": "hi", "refusal": None, "tool_calls": [], "tool_call_id": None, "audio": None},
        Message("user", "hi"),
    ),
    "unknown": (user("hi") | {"mood": SECRET, "__class__": SECRET, "to_engine": 1, "": 2}, Message("user", "hi")),
    "images: none": (assistant(content="no", images=[], prefix=False), Message("assistant", "no")),
    "call without type": (assistant(tool_calls=[{"id": "a", "function": CALL["function"]}]), called("{}")),
    "call with type null": (assistant(tool_calls=[{**CALL, "type": None}]), called("{}")),
    "call without id": (assistant(tool_calls=[{"function": CALL["function"]}]), called("{}", id=CLOCK_ID)),
    "call with id null": (assistant(tool_calls=[{**CALL, "id": None}]), called("{}", id=CLOCK_ID)),
    "call with an empty id": (assistant(tool_calls=[{**CALL, "id": ""}]), called("{}", id=CLOCK_ID)),
    "name that no tool may have": (calling(name="what is\n<|end|>"), called("{}", "what is\n<|end|>")),
    "name cut to nothing": (calling(name=""), called("{}", "")),
    "arguments as written": (calling(arguments='{ "a" : 1 }'), called('{ "a" : 1 }')),
    "no arguments": (calling(), called("{}")),
    "empty arguments": (calling(arguments=""), called("{}")),
    "null arguments": (calling(arguments=None), called("{}")),
    "blank arguments": (calling(arguments=" "), called(wrapped(" "))),
    "parsed arguments": (calling(arguments={"a": "é"}), called('{"a": "é"}')),
    "parsed list": (calling(arguments=[1]), called(wrapped("[1]"))),
    "arguments cut short": (calling(arguments='{"city": "Ro'), called(wrapped('{"city": "Ro'))),
    "arguments cut to a bracket": (calling(arguments="{"), called(wrapped("{"))),
    "arguments that are true": (calling(arguments="true"), called(wrapped("true"))),
    "arguments that are a list": (calling(arguments="[]"), called(wrapped("[]"))),
    "arguments that are null": (calling(arguments="null"), called(wrapped("null"))),
    "arguments that are text": (calling(arguments="[\n   \n sorry"), called(wrapped("[\n   \n sorry"))),
    "arguments with NaN": (calling(arguments='{"a": NaN}'), called(wrapped('{"a": NaN}'))),
    "arguments with half a character": (calling(arguments='{"a": "\\ud800"}'), called(wrapped('{"a": "\\ud800"}'))),
    "arguments with a large number": (
        calling(arguments='{"a": ' + "9" * 5000 + "}"),
        called(wrapped('{"a": ' + "9" * 5000 + "}")),
    ),
    "arguments nested deeply": (calling(arguments=DEEP), called(wrapped(DEEP))),
    "arguments nested without end": (calling(arguments='{"a":' * 9999), called(wrapped('{"a":' * 9999))),
    "older call": (
        assistant(content=None, function_call={"name": "clock", "arguments": '{"a": 1}'}),
        called('{"a": 1}', id=CLOCK_ID),
    ),
    "older call cut short": (
        assistant(function_call={"name": "clock", "arguments": "{"}),
        called(wrapped("{"), id=CLOCK_ID),
    ),
    "older result": (
        {"role": "function", "name": "clock", "content": "12"},
        Message("tool", "12", tool_call_id=CLOCK_ID),
    ),
    "older result of nothing": (
        {"role": "function", "name": "clock", "content": None},
        Message("tool", "", tool_call_id=CLOCK_ID),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
async def test_what_clients_send_is_taken(name: str) -> None:
    """At every entrance that a conversation has."""
    message, shown = TAKEN[name]
    async with serving(ScriptedEngine(max_model_tokens=2**17)) as served:
        body = {"model": MODEL, "messages": [user("one"), message, user("two")]}
        response = await served.post(CHAT, body)
        assert response.status_code == 200, response.text
        expected = served.engine.encode_chat([Message("user", "one"), shown, Message("user", "two")])
        assert served.engine.submitted[0].prompt_token_ids == expected
        assert all(isinstance(json.loads(call.arguments), dict) for call in shown.tool_calls), (
            "templates look into them"
        )
        checked = await served.post(CHECKS, body)
        assert checked.json()["prompt_tokens"] == len(expected)


PLACES: dict[str, tuple[type[HistoryBody], list[str | int]]] = {
    "message": (ChatMessage, []),
    "part": (Part, ["content", 0]),
    "call": (CallBody, ["tool_calls", 0]),
    "function": (CalledFunction, ["tool_calls", 0, "function"]),
}
"""Objects of a conversation, and where one is in the message below."""


def full_message() -> dict[str, Any]:
    """With one of every kind of object in it."""
    message = assistant(content=[{"type": "text", "text": "no"}], tool_calls=[CALL])
    copied: dict[str, Any] = json.loads(json.dumps(message))
    return copied


VALUES = [None, SECRET, 5, True, [SECRET], {"text": SECRET, "content": SECRET, SECRET: SECRET}]
KEYS = {place: [*sorted(of.bookkeeping), "mood", SECRET] for place, (of, _) in PLACES.items()}


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, keys in KEYS.items() for key in keys])
async def test_what_is_not_read_is_neither_rendered_nor_logged(
    place: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "skillguard")
    of, path = PLACES[place]
    assert key not in of.field_names() or key == "name"
    async with serving() as served:
        await served.post(CHAT, {"model": MODEL, "messages": [full_message()]})
        assert "dropped" not in caplog.text
        for value in VALUES:
            message: Any = full_message()
            at = message
            for step in path:
                at = at[step]
            at[key] = value
            response = await served.post(CHAT, {"model": MODEL, "messages": [message, message]})
            assert response.status_code == 200, response.text
        plain, *others = [request.prompt_token_ids for request in served.engine.submitted]
        once = plain[: -len("assistant: ")]
        assert set(others) == {(*once, *plain)}
    counted = key if key in of.bookkeeping else "other"
    assert caplog.text.count(f"dropped from messages: {counted}=2\n") == len(VALUES)
    assert SECRET not in caplog.text


async def test_dropped_keys_are_counted_by_name(caplog: pytest.LogCaptureFixture) -> None:
    messages = [
        user([{"type": "text", "text": "hi", "cache_control": {}, "mood": 1}]) | {"name": "ann", "hue": 1},
        assistant(parsed=1, content=[{"type": "thinking", "thinking": "hm", "signature": "s"}]),
        assistant(tool_calls=[{**CALL, "index": 0, "function": {"name": "clock", "parsed_arguments": None}}]),
        assistant(function_call={"name": "clock", "parsed_arguments": 1}),
    ]
    async with serving() as served:
        for level, path in (("INFO", CHAT), ("DEBUG", CHAT), ("DEBUG", CHECKS)):
            caplog.clear()
            caplog.set_level(level, "skillguard")
            await served.post(path, {"model": MODEL, "messages": messages}, **{"x-request-id": "mine"})
            line = (
                "mine dropped from messages: "
                "cache_control=1 index=1 name=1 other=2 parsed=1 parsed_arguments=2 signature=1 thinking=1"
            )
            assert (line in caplog.text) == (level == "DEBUG")


@pytest.mark.parametrize(
    "message",
    [
        user([{"type": "input_text", "text": SECRET}]),
        user([{"type": "output_text", "text": SECRET}]),
        user([{"type": "refusal", "refusal": SECRET}]),
        assistant(refusal=SECRET),
        assistant(content="a", refusal=SECRET),
        assistant(function_call={"name": "f", "arguments": SECRET}),
        calling(arguments=f'{{"a": "{SECRET}'),
        calling(name=SECRET),
        {"role": "function", "name": "f", "content": SECRET},
    ],
)
async def test_what_is_read_is_rendered(message: dict[str, object]) -> None:
    """So that guards see it."""
    async with serving() as served:
        assert (await served.post(CHAT, {"model": MODEL, "messages": [message]})).status_code == 200
        assert SECRET.encode() in bytes(served.engine.submitted[0].prompt_token_ids)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
        (assistant(function_call={"name": "f"}), "messages[0].function_call"),
        (assistant(tool_calls=[CALL]), "messages[0].tool_calls"),
    ],
)
async def test_calls_need_an_engine_that_shows_them(message: dict[str, object], param: str) -> None:
    async with serving(ScriptedEngine(options=COMMON_OPTIONS, tool_choices=frozenset())) as served:
        for path in CHAT, CHECKS:
            error = await served.error(path, {"model": MODEL, "messages": [message]})
            assert (error["code"], error["param"]) == ("unsupported_parameter", param)


async def test_half_a_character_is_refused_wherever_it_is_rendered() -> None:
    half = "\ud83d"
    messages: list[dict[str, object]] = [
        user(half),
        user([{"type": "text", "text": half}]),
        assistant(refusal=half),
        assistant(content=[{"type": "refusal", "refusal": half}]),
        calling(name=half),
        calling(arguments=half),
        calling(arguments={"a": half}),
        assistant(function_call={"name": half}),
        {"role": "function", "name": half, "content": "x"},
    ]
    async with serving() as served:
        for message in messages:
            content = json.dumps({"model": MODEL, "messages": [message]})
            response = await served.client.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value"), message
        dropped = json.dumps({"model": MODEL, "messages": [{**user("hi"), "mood": half, half: half}]})
        headers = {"content-type": "application/json"}
        assert (await served.client.post(CHAT, content=dropped, headers=headers)).status_code == 200


def test_the_documentation_holds_the_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    assert tables.written(page) == page, "run `python -m server.openai.tables`"
