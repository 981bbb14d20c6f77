"""Values that ask for what happens anyway, or nothing of the answer: the engine is asked as if they were not there.

So none of them can be a way around a guard. Every field that is let through belongs in here.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from server.engines.request import COMMON_OPTIONS, EngineRequest, Sampling
from server.engines.scripted.engine import ScriptedEngine
from server.engines.tools import ToolChoice
from server.openai import ChatRequest, CheckRequest, CompletionRequest
from server.openai.body import Body
from server.openai.history import ChatMessage
from server.openai.responses.request import ResponsesRequest
from server.openai.unsupported import IN_CHAT, IN_COMPLETION, IN_RESPONSES, IN_TOOL, Neutral
from tests.server.harness import (
    CHAT,
    CHECKS,
    COMPLETIONS,
    MODEL,
    RESPONSES,
    Served,
    chat,
    completion,
    responses,
    serving,
)

pytestmark = pytest.mark.anyio

ANYTHING: list[object] = [None, True, False, 0, 1.5, "", "x", [], ["x"], {}, {"a": {"b": "c"}}]
"""For fields that ask nothing of the answer whatever they hold."""


def of_table(known: Neutral) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, neutral in known.items()
        for value in ([None, *_spellings(neutral)] if neutral is not None else ANYTHING)
    ]


def _spellings(neutral: tuple[object, ...]) -> list[object]:
    """JSON has one kind of number."""
    return [each for value in neutral for each in ([value, 1.0 * value] if type(value) is int else [value])]


BOTH: list[tuple[str, object]] = [
    ("user", "u"),
    ("safety_identifier", "s"),
    ("frobnicate", None),
    ("messages_", None),
    ("n", 1),
    ("best_of", 1),
    ("seed", -1),
    ("seed", None),
    ("logit_bias", {}),
    ("logit_bias", {"1": 0}),
    ("logit_bias", {"1": 0.0, "5": -0.0}),
    ("temperature", 1),
    ("top_p", 1),
    ("top_k", -1),
    ("top_k", 0),
    ("min_p", 0),
    ("presence_penalty", 0),
    ("frequency_penalty", -0.0),
    ("repetition_penalty", 1),
    ("stop", []),
    ("stop_token_ids", []),
    ("bad_words", []),
    ("min_tokens", 0),
    ("ignore_eos", False),
    ("include_stop_str_in_output", False),
    ("response_format", {"type": "text"}),
    ("response_format", {"type": "text", "json_schema": None, "schema": None}),
    ("stream_options", None),
]
ONLY_CHAT: list[tuple[str, object]] = [
    ("tools", []),
    ("tools", None),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("parallel_tool_calls", True),
    ("parallel_tool_calls", False),
    ("logprobs", False),
    ("top_logprobs", 0),
    ("max_completion_tokens", None),
    ("prompt", None),
]
ONLY_RESPONSES: list[tuple[str, object]] = [
    ("store", False),
    ("instructions", ""),
    ("instructions", None),
    ("metadata", {}),
    ("metadata", {"a": "b"}),
    ("text", {}),
    ("text", {"format": None, "verbosity": "medium"}),
    ("text", {"format": {"type": "text"}}),
    ("reasoning", {}),
    ("reasoning", {"effort": "none", "summary": None}),
    ("include", []),
    ("include", ["reasoning.encrypted_content", "file_search_call.results"]),
    ("max_output_tokens", None),
    *(each for each in ONLY_CHAT if each[0] not in ("max_completion_tokens", "prompt")),
]
ASKS_NOTHING = [
    *((CHAT, name, value) for name, value in (*of_table(IN_CHAT), *BOTH, *ONLY_CHAT)),
    *((COMPLETIONS, name, value) for name, value in (*of_table(IN_COMPLETION), *BOTH, ("messages", None))),
    *(
        (RESPONSES, name, value)
        for name, value in (*of_table(IN_RESPONSES), *BOTH, *ONLY_RESPONSES)
        if not (isinstance(value, dict) and "json_schema" in value)
    ),
]


def answered(body: dict[str, Any]) -> Any:
    """What a response says, without its ids."""
    return body.get("choices") or [item["content"] for item in body["output"]]


def asked(served: Served) -> EngineRequest:
    """The newest request, but for its id."""
    return replace(served.engine.submitted[-1], request_id="")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
async def test_the_engine_is_asked_as_without_them(path: str) -> None:
    """Even by an engine that honours next to nothing; in one answer and in a stream, alone and all together."""
    fields = [(name, value) for at, name, value in ASKS_NOTHING if at == path]
    body = {CHAT: chat(), COMPLETIONS: completion(), RESPONSES: responses()}[path]
    async with serving(ScriptedEngine(options=COMMON_OPTIONS, tool_choices=frozenset())) as served:
        plain_answer = (await served.post(path, body)).json()
        plain = asked(served)
        for name, value in [*fields, ("stream", None)]:
            response = await served.post(path, {**body, name: value})
            assert response.status_code == 200, (name, value, response.text)
            assert asked(served) == plain, (name, value)
            assert answered(response.json()) == answered(plain_answer)
        assert (await served.post(path, {**body, **dict(fields), "stream": True})).status_code == 200
        assert asked(served) == plain
        assert len(served.engine.submitted) == len(fields) + 3


def _objects(body: type[Body]) -> list[type[Body]]:
    return [body, *(each for inner in body.__subclasses__() for each in _objects(inner))]


def test_no_field_is_both_honoured_and_not() -> None:
    assert all(not (of.field_names() & of.not_honoured.keys()) for of in _objects(Body))
    assert {*_objects(Body)} >= {ChatRequest, CompletionRequest, ResponsesRequest, CheckRequest, ChatMessage}


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"name": "n", "schema": {"type": "object"}}
CHOSEN = {"type": "function", "function": {"name": "clock"}}
NESTED: list[tuple[str, dict[str, object], list[str | int]]] = [
    (CHAT, chat(stream=True, stream_options={}), ["stream_options"]),
    (CHAT, chat(response_format={"type": "json_object"}), ["response_format"]),
    (CHAT, chat(response_format={"type": "json_schema", "json_schema": SCHEMA}), ["response_format", "json_schema"]),
    (CHAT, chat(structured_outputs={"regex": "a"}), ["structured_outputs"]),
    (CHAT, chat(tools=[TOOL]), ["tools", 0]),
    (CHAT, chat(tools=[TOOL]), ["tools", 0, "function"]),
    (CHAT, chat(tools=[TOOL], tool_choice=CHOSEN), ["tool_choice"]),
    (CHAT, chat(tools=[TOOL], tool_choice=CHOSEN), ["tool_choice", "function"]),
    (RESPONSES, responses(stream=True, stream_options={"include_usage": True}), ["stream_options"]),
    (RESPONSES, responses(text={}), ["text"]),
    (RESPONSES, responses(text={"format": {"type": "json_schema", **SCHEMA}}), ["text", "format"]),
    (RESPONSES, responses(reasoning={"effort": "none"}), ["reasoning"]),
    (RESPONSES, responses(tools=[{"type": "function", "name": "clock"}]), ["tools", 0]),
    (
        RESPONSES,
        responses(tools=[{"type": "function", "name": "f"}], tool_choice={"type": "function", "name": "f"}),
        ["tool_choice"],
    ),
    (CHECKS, completion(), []),
    (CHECKS, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}, []),
]


def changed(body: dict[str, object], path: list[str | int], key: str, value: object) -> dict[str, object]:
    """A copy with one more key in the object at the path."""
    copied: dict[str, object] = json.loads(json.dumps(body))
    at: Any = copied
    for step in path:
        at = at[step]
    at[key] = value
    return copied


@pytest.mark.parametrize(("route", "body", "path"), NESTED)
async def test_an_unknown_null_is_nothing_in_any_object(
    route: str, body: dict[str, object], path: list[str | int]
) -> None:
    async with serving() as served:
        assert (await served.post(route, body)).status_code == 200
        response = await served.post(route, changed(body, path, "frobnicate", None))
        assert response.status_code == 200, response.text
        if route != CHECKS:
            assert asked(served) == replace(served.engine.submitted[0], request_id="")
        error = await served.error(route, changed(body, path, "frobnicate", 0))
        assert (error["status"], error["param"].rpartition(".")[2]) == (400, "frobnicate")


@pytest.mark.parametrize("path", [["tools", 0], ["tools", 0, "function"]])
@pytest.mark.parametrize(("key", "value"), of_table(IN_TOOL))
async def test_marks_on_a_tool(path: list[str | int], key: str, value: object) -> None:
    async with serving() as served:
        for body in (chat(tools=[TOOL]), changed(chat(tools=[TOOL]), path, key, value)):
            assert (await served.post(CHAT, body)).status_code == 200
        first, second = served.engine.tool_uses
        assert first == second
        assert asked(served) == replace(served.engine.submitted[0], request_id="")


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 9, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": None, "max_completion_tokens": 5}, 5),
    ],
)
async def test_the_newer_limit_wins(fields: dict[str, object], limit: int) -> None:
    async with serving() as served:
        assert (await served.post(CHAT, chat(**fields))).status_code == 200
        assert asked(served).sampling == Sampling(limit)


@pytest.mark.parametrize(
    ("seed", "drawn"),
    [
        (0, [0, 1]),
        (7, [7, 8]),
        (2**62, [2**62, 2**62 + 1]),
        (2**63 - 1, [2**63 - 1, 0]),
        (-2, [2**63 - 2, 2**63 - 1]),
        (-(2**63), [0, 1]),
        (-1, [None, None]),
    ],
)
async def test_seeds_of_vllm(seed: int, drawn: list[int | None]) -> None:
    """Any number of 64 bits, and -1 for none."""
    async with serving() as served:
        assert (await served.post(CHAT, chat(seed=seed, n=2))).status_code == 200
        assert [request.sampling.seed for request in served.engine.submitted] == drawn


async def test_a_bias_beside_one_of_nothing() -> None:
    async with serving() as served:
        await served.post(CHAT, chat(logit_bias={"1": 0, "5": -100, "6": 0.0}))
        assert asked(served).sampling.logit_bias == {5: -100.0}


@pytest.mark.parametrize("choice", ["required", CHOSEN])
async def test_a_call_without_tools_cannot_be_had(choice: object) -> None:
    async with serving() as served:
        for body in (chat(), chat(tools=None), chat(tools=[])):
            error = await served.error(CHAT, {**body, "tool_choice": choice})
            assert (error["status"], error["param"]) == (400, "tool_choice")
        assert ToolChoice.REQUIRED in served.engine.info.tool_choices
