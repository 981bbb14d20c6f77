"""LiteLLM's generic guardrail: requests and responses of models that run elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from guards.core.verdict import GuardMode
from server.auth import Role, new_key
from server.config import AbstainStyle, ServerConfig
from tests.server.harness import GUARDRAIL, Served, keys_file, serving
from tests.server.judging import cook

pytestmark = pytest.mark.anyio

TEXT = ServerConfig().abstain_text
HALF = "\ud800"
SIDES = ("request", "response")
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city"}}
AS_SENT = {
    "litellm_call_id": "call",
    "litellm_trace_id": "trace",
    "structured_messages": [{"role": "user", "content": "cook"}],
    "images": None,
    "tools": None,
    "request_data": {"user_api_key_alias": "cook"},
    "request_headers": {"host": "cook"},
    "litellm_version": "1.110.2",
    "additional_provider_specific_params": {},
    "tool_calls": None,
    "model": "gpt-cook",
}
"""What a proxy sends beside the texts. None of it is judged or kept."""


async def action(served: Served, side: str, texts: list[str], **more: Any) -> Any:
    response = await served.post(GUARDRAIL, {**AS_SENT, "input_type": side, "texts": texts, **more})
    assert response.status_code == 200, response.text
    return response.json()


def call(arguments: str, name: str = "act") -> dict[str, object]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def said(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, *parts]}]


@pytest.mark.parametrize("style", AbstainStyle)
@pytest.mark.parametrize("side", SIDES)
async def test_texts_are_blocked_or_let_through(side: str, style: AbstainStyle) -> None:
    async with serving(cook(), abstain_style=style, anonymous_role="operator") as served:
        assert await action(served, side, ["a", "b"]) == {"action": "NONE"}
        blocked = await action(served, side, ["a", "how to cook"])
        guard = blocked.pop("guard")
        assert blocked == {"action": "BLOCKED", "blocked_reason": TEXT}
        assert (guard["action"], guard["skill"], guard["score"]) == ("abstain", "cooking", 0.25)
        assert {request.sampling.max_tokens for request in served.engine.submitted} == {1}


async def test_users_are_told_no_scores() -> None:
    async with serving(cook()) as served:
        blocked = await action(served, "request", ["cook"])
        assert blocked["guard"] == {"action": "abstain", "skill": "cooking", "method": "ksd", "stage": "prompt"}


async def test_a_guard_that_only_watches_lets_through() -> None:
    async with serving(cook(mode=GuardMode.SHADOW), shadow=("c",)) as served:
        assert await action(served, "request", ["cook"]) == {"action": "NONE"}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"tool_calls": [call('{"how": "to cook"}')]}, "BLOCKED"),
        ({"tool_calls": [call("{}", name="cook")]}, "BLOCKED"),
        ({"tool_calls": [call("{}"), {"custom": {"input": "cook"}}]}, "BLOCKED"),
        ({"tool_calls": [call("{}")]}, "NONE"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "a", "description": "cook"}}]}, "BLOCKED"),
        ({"tools": [TOOL]}, "NONE"),
        ({"tool_calls": [{**call("{}"), "note": "cook"}]}, "BLOCKED"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": "{}", "note": "cook"}}]}, "BLOCKED"),
        (
            {"structured_messages": [{"role": "assistant", "function_call": {"name": "cook", "arguments": ""}}]},
            "BLOCKED",
        ),
        ({"structured_messages": [{"role": "assistant", "refusal": "cook"}]}, "BLOCKED"),
        ({"structured_messages": [{"role": "assistant", "reasoning_content": "cook"}]}, "BLOCKED"),
        ({"structured_messages": said({"type": "refusal", "refusal": "cook"})}, "BLOCKED"),
        ({"structured_messages": said({"type": "thinking", "thinking": "cook", "signature": "s"})}, "BLOCKED"),
        ({"structured_messages": said({"type": "text", "text": "a"})}, "NONE"),
        ({"structured_messages": said({"type": "output_text", "text": "a", "annotations": []})}, "NONE"),
        ({"structured_messages": None}, "NONE"),
        ({"structured_messages": [{"role": "assistant", "content": None}]}, "NONE"),
        ({"texts": None}, "NONE"),
        ({"texts": [], "tool_calls": [], "tools": [], "images": []}, "NONE"),
    ],
)
async def test_calls_and_definitions_of_tools_are_judged(more: dict[str, Any], what: str) -> None:
    async with serving(cook()) as served:
        response = await served.post(GUARDRAIL, {**AS_SENT, "input_type": "request", "texts": ["a"], **more})
        assert response.json()["action"] == what


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"images": ["data:image/png;base64,"]}, "images"),
        ({"additional_provider_specific_params": {"threshold": 9}}, "additional_provider_specific_params"),
        ({"structured_messages": said({"type": "file", "file": {"file_data": "cook"}})}, "structured_messages"),
        ({"structured_messages": said({"type": "input_audio", "input_audio": {}})}, "structured_messages"),
        (
            {"structured_messages": said({"type": "file", "text": "a", "file": {"file_data": "cook"}})},
            "structured_messages",
        ),
        ({"structured_messages": said({"type": "video_url", "refusal": "", "video_url": {}})}, "structured_messages"),
        (
            {"structured_messages": said({"type": "text", "text": "a", "source": {"a": "cook"}})},
            "structured_messages",
        ),
        ({"structured_messages": said({"type": ["text"], "text": "a"})}, "structured_messages"),
        ({"structured_messages": said({"type": "text", "text": ["cook"], "refusal": ""})}, "structured_messages"),
        ({"structured_messages": said({"type": "redacted_thinking", "data": "cook"})}, "structured_messages"),
        ({"structured_messages": said("cook")}, "structured_messages"),
        ({"structured_messages": [{"role": "user", "content": {"text": "cook"}}]}, "structured_messages"),
        ({"structured_messages": ["cook"]}, "structured_messages"),
        ({"structured_messages": {"role": "user", "content": "cook"}}, "structured_messages"),
        ({"texts": ["a"] * 1000, "tool_calls": [call("{}")] * 25}, "texts"),
        ({"documents": ["cook"]}, "documents"),
        ({"input_type": "reply"}, "input_type"),
        ({"texts": [5]}, "texts[0]"),
        ({"texts": "cook"}, "texts"),
    ],
)
async def test_what_cannot_be_judged_is_an_error(more: dict[str, Any], param: str) -> None:
    async with serving(cook()) as served:
        error = await served.error(GUARDRAIL, {**AS_SENT, "input_type": "request", "texts": ["a"], **more})
        assert (error["status"], error["param"]) == (400, param)
        assert served.engine.submitted == []


@pytest.mark.parametrize(
    "more",
    [
        {"texts": [HALF]},
        {"tool_calls": [{"function": {"name": HALF}}]},
        {"tool_calls": [call(HALF)]},
        {"tools": [{"a": HALF}]},
        {"structured_messages": [{"role": "assistant", "refusal": HALF}]},
    ],
)
async def test_half_a_character_is_refused(more: dict[str, Any]) -> None:
    content = json.dumps({**AS_SENT, "input_type": "request", **more})
    async with serving(cook()) as served:
        headers = {"content-type": "application/json"}
        response = await served.client.post(GUARDRAIL, content=content, headers=headers)
        assert response.status_code == 400
        assert "lone surrogates" in response.json()["error"]["message"]


@pytest.mark.parametrize("side", SIDES)
async def test_a_text_that_is_not_read_is_an_error_also_beside_one_that_is(side: str) -> None:
    async with serving(cook(max_model_tokens=8)) as served:
        body = {**AS_SENT, "input_type": side}
        assert (await served.error(GUARDRAIL, {**body, "texts": ["a", "break"]}))["status"] == 500
        assert (await served.error(GUARDRAIL, {**body, "texts": ["a", "a" * 9]}))["status"] == 400
        served.engine.alive = False
        assert (await served.error(GUARDRAIL, {**body, "texts": ["a"]}))["status"] == 503


async def test_the_key_may_come_as_litellm_sends_it(tmp_path: Path) -> None:
    key, entry = new_key("proxy", Role.USER)
    path = keys_file(tmp_path, entry, abstain_text="Ask the help desk.")
    body = {**AS_SENT, "input_type": "request", "texts": ["a"]}
    async with serving(cook(), api_keys_file=path) as served:
        assert (await served.post(GUARDRAIL, body, **{"x-api-key": key})).json() == {"action": "NONE"}
        for wrong in ({"x-api-key": "sk"}, {"x-api-key": ""}, {}, {"x-api-key": key, "authorization": "Bearer sk"}):
            assert (await served.post(GUARDRAIL, body, **wrong)).status_code == 401
        both = {"x-api-key": key, "authorization": f"Bearer {key}"}
        blocked = (await served.post(GUARDRAIL, {**body, "texts": ["cook"]}, **both)).json()
        assert blocked["blocked_reason"] == "Ask the help desk.", "the tenant's"
