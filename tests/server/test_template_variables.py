"""What a request gives the chat template beside messages, as the engine gets it."""

from typing import Any

import pytest

from server.engines.scripted.engine import ScriptedEngine
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, RESPONSES, chat, completion, responses, serving

pytestmark = pytest.mark.anyio

OFF = {"enable_thinking": False}
DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"chat_template_kwargs": None, "reasoning_effort": None}, {}),
        ({"chat_template_kwargs": {**OFF, "x": [1, None]}}, {**OFF, "x": [1, None]}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": OFF},
            {"reasoning_effort": "high", "enable_thinking": False},
        ),
    ],
)
async def test_the_template_is_given_it(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    said = {name: value for name, value in fields.items() if name != "reasoning_effort"}
    reasoning = {"effort": fields["reasoning_effort"]} if "reasoning_effort" in fields else None
    async with serving() as served:
        assert (await served.post(CHAT, chat(**fields))).status_code == 200
        response = await served.post(RESPONSES, responses(**said, reasoning=reasoning))
        assert response.json()["reasoning"]["effort"] == fields.get("reasoning_effort")
        assert served.engine.variables == [variables, variables]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat(chat_template_kwargs=[1]), "chat_template_kwargs"),
        (CHAT, chat(chat_template_kwargs=DEEP), "chat_template_kwargs"),
        (CHAT, chat(reasoning_effort="much"), "reasoning_effort"),
        (RESPONSES, responses(chat_template_kwargs=DEEP), "chat_template_kwargs"),
        (RESPONSES, responses(reasoning={"effort": "much"}), "reasoning.effort"),
        (COMPLETIONS, completion(chat_template_kwargs=OFF), "chat_template_kwargs"),
        (COMPLETIONS, completion(reasoning_effort="low"), "reasoning_effort"),
        (CHECKS, completion(chat_template_kwargs=OFF), "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": OFF}, "chat_template_kwargs"),
    ],
)
async def test_what_is_refused(path: str, body: dict[str, Any], param: str) -> None:
    async with serving() as served:
        assert (await served.error(path, body))["param"] == param


async def test_effort_that_no_template_reads() -> None:
    """OpenAI refuses it too, of models that do not reason; none is what such a model makes."""
    engine = ScriptedEngine(template_names=frozenset({"messages"}))
    async with serving(engine) as served:
        error = await served.error(CHAT, chat(reasoning_effort="low"))
        assert (error["code"], error["param"]) == ("unsupported_parameter", "reasoning_effort")
        assert (await served.post(CHAT, chat(reasoning_effort="none"))).status_code == 200
        error = await served.error(RESPONSES, responses(reasoning={"effort": "low"}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", "reasoning.effort")
        assert (await served.post(RESPONSES, responses(reasoning={"effort": "none"}))).status_code == 200
