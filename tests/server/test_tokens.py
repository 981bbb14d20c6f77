"""Token ids without an answer, in vLLM's shapes."""

from typing import Any

import pytest

from server.engines.scripted.engine import ScriptedEngine
from tests.server.harness import Served, serving

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look"}}


async def tokens(served: Served, **body: Any) -> dict[str, Any]:
    response = await served.post("/tokenize", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["count"] == len(found["tokens"])
    return found


async def test_a_text() -> None:
    engine = ScriptedEngine(max_model_tokens=99)
    engine.opens = True
    async with serving(engine) as served:
        found = await tokens(served, model="scripted", prompt="hé")
        assert found == {"count": 4, "max_model_len": 99, "tokens": [0, *"hé".encode()], "token_strs": None}
        bare = await tokens(served, prompt="hé", add_special_tokens=False, return_token_strs=True)
        assert (bare["tokens"], bare["token_strs"]) == (list("hé".encode()), ["<104>", "<195>", "<169>"])
        back = await served.post("/detokenize", {"tokens": bare["tokens"]})
        assert back.json() == {"prompt": "hé"}


async def test_a_conversation_is_what_the_chat_route_sends() -> None:
    async with serving() as served:
        found = await tokens(served, messages=HI, tools=[TOOL])
        await served.post("/v1/chat/completions", {"model": "scripted", "messages": HI, "tools": [TOOL]})
        assert tuple(found["tokens"]) == served.engine.submitted[0].prompt_token_ids
        unanswered = await tokens(served, messages=HI, add_generation_prompt=False, add_special_tokens=False)
        assert bytes(unanswered["tokens"]) == b"user: hi\n"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": HI}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "model": "other"}, "model"),
        ({"messages": HI, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": HI, "continue_final_message": True}, "continue_final_message"),
        ({"messages": HI, "chat_template": "x"}, "chat_template"),
        ({"prompt": "a", "max_tokens": 3}, "max_tokens"),
    ],
)
async def test_what_is_refused(body: dict[str, Any], param: str) -> None:
    async with serving() as served:
        assert (await served.error("/tokenize", body))["param"] == param


async def test_tools_that_no_model_is_shown() -> None:
    async with serving(ScriptedEngine(tool_choices=frozenset())) as served:
        error = await served.error("/tokenize", {"messages": HI, "tools": [TOOL]})
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")


@pytest.mark.parametrize("token", [256, -1, "a"])
async def test_tokens_that_are_none(token: object) -> None:
    async with serving() as served:
        assert (await served.error("/detokenize", {"tokens": [token]}))["status"] == 400


async def test_neither_needs_verified_guards() -> None:
    engine = ScriptedEngine()
    engine.verification = {"demo": "no"}
    async with serving(engine) as served:
        assert (await served.post("/tokenize", {"prompt": "a"})).status_code == 200
        assert (await served.post("/detokenize", {"tokens": [97]})).status_code == 200
        engine.may_start.clear()
    async with serving(engine, settled=False) as served:
        assert (await served.error("/tokenize", {"prompt": "a"}))["code"] == "not_ready"
