"""Mutated requests, handed to the application as a server would. What is wrong is the caller's error, never ours."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.fuzz.mutations import mutated, mutated_json
from benchmarks.fuzz.target import FindingError, Inputs
from server.app import create_app
from server.config import ServerConfig
from server.engines.events import Finish
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer, guard, score

_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
_TOOL = {"type": "function", "function": _FUNCTION}
_MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "4"},
    {"role": "user", "content": "hi"},
]
_OPTIONS = {
    **{"max_tokens": 8, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "stop": ["x"], "n": 2},
    **{"logit_bias": {"5": 1.5}, "allowed_token_ids": [1, 2], "bad_words": ["no"], "stop_token_ids": [3], "user": "u"},
    **{"frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1, "min_tokens": 1},
}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": _MESSAGES, "tools": [_TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", {"messages": _MESSAGES[:2], **_OPTIONS, "chat_template_kwargs": {"thinking": True}}),
    (
        "/v1/chat/completions",
        {
            "messages": _MESSAGES[4:],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA, "strict": True}},
        },
    ),
    ("/v1/completions", {"prompt": ["hi", "ho"], **_OPTIONS, "echo": False, "suffix": None}),
    ("/v1/completions", {"prompt": [104, 105], "structured_outputs": {"regex": "a+"}, "max_tokens": 4}),
    ("/v1/responses", {"input": "hi", "instructions": "i", "max_output_tokens": 8, "temperature": 0.1, "store": False}),
    (
        "/v1/responses",
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "4"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
            "text": {"format": {"type": "text"}},
        },
    ),
    ("/v1/checks", {"messages": _MESSAGES[4:]}),
    ("/v1/checks", {"prompt": "hi"}),
    ("/v1/attributions", {"prompt": "hi"}),
    ("/v1/moderations", {"input": ["hi", "ho"]}),
    ("/beta/litellm_basic_guardrail_api", {"texts": ["hi"], "input_type": "request"}),
    ("/tokenize", {"messages": _MESSAGES[4:], "add_generation_prompt": True, "return_token_strs": True}),
    ("/tokenize", {"prompt": "hi"}),
    ("/detokenize", {"tokens": [104, 105]}),
)
_NAMES = frozenset({"thinking"})
_ERROR = {"message", "type", "param", "code", "guard"}
_LONGEST_MESSAGE = 2_000


@contextmanager
def protocol(_: Path) -> Iterator[Inputs]:
    """Bodies of every route that takes one, to an engine that plays a script."""
    loop = asyncio.new_event_loop()
    *said, end = answer("Hello", " there", ".")
    assert isinstance(end, Finish)
    engine = ScriptedEngine([Script((*said, replace(end, prompt_scores=(score(guard()),))))], template_names=_NAMES)
    app = create_app(engine, ServerConfig(anonymous_role="operator"))
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    try:
        loop.run_until_complete(app.state.services.readiness.settled.wait())
        for path, body in GOOD:
            _require_taken(loop.run_until_complete(client.post(path, json=body)), path)

        def mutation(dice: Random) -> bytes:
            number = dice.randrange(len(GOOD))
            content = json.dumps(mutated_json(GOOD[number][1], dice)).encode()
            if dice.random() < 0.2:
                content = mutated(content, dice)
            return bytes([number]) + content

        def tried(data: bytes) -> str:
            path, content = GOOD[int.from_bytes(data[:1]) % len(GOOD)][0], data[1:]
            reply = loop.run_until_complete(
                client.post(path, content=content, headers={"content-type": "application/json"})
            )
            engine.submitted.clear()
            return _outcome(reply, path)

        good = [bytes([number]) + json.dumps(body).encode() for number, (_, body) in enumerate(GOOD)]
        yield Inputs(good, mutation, tried)
    finally:
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.close()


def _require_taken(reply: httpx.Response, path: str) -> None:
    if reply.status_code != 200:
        raise RuntimeError(f"{path}: what mutations start from is refused: {reply.text}")


def _outcome(reply: httpx.Response, path: str) -> str:
    if reply.status_code == 200:
        if reply.headers["content-type"].startswith("application/json"):
            reply.json()
        elif not reply.text.endswith("\n\n") or '"error"' in reply.text:
            raise FindingError(f"{path}: a stream that breaks: {reply.text[-200:]}")
        return "200"
    if reply.status_code not in (400, 404):
        raise FindingError(f"{path}: {reply.status_code}: {reply.text[:300]}")
    error = reply.json()["error"]
    if not {*error} <= _ERROR or not error["message"]:
        raise FindingError(f"{path}: no error object of OpenAI's: {reply.text[:300]}")
    if len(error["message"]) > _LONGEST_MESSAGE:
        raise FindingError(f"{path}: a message of {len(error['message'])} characters")
    return str(reply.status_code)
