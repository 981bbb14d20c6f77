"""The moderation result beside an answer, which a chat's and a response's `moderation` asks for."""

from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from guards.core.verdict import GuardMode, Reading, Stage
from server.engines.events import Finish
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit, score
from tests.server.harness import CHAT, COMPLETIONS, RESPONSES, chat, completion, responses, serving

pytestmark = pytest.mark.anyio

COOKING, PYTHON = guard("c", skill="cooking"), guard("p", skill="python")
ASKED = {"model": "scripted"}


def engine() -> ScriptedEngine:
    """It abstains at prompts that say "cook", and in the middle of answers to those that say "late"."""

    def scored(*steps: Any, inside: bool = False) -> tuple[Any, ...]:
        scores = (score(COOKING, Reading.INSIDE if inside else Reading.OUTSIDE), score(PYTHON))
        return tuple(replace(step, prompt_scores=scores) if isinstance(step, Finish) else step for step in steps)

    late = hit(COOKING, Stage.GENERATION)
    watched = hit(PYTHON, Stage.GENERATION, GuardMode.SHADOW)
    scripts = (
        Script(scored(*abstention(hit(COOKING)), inside=True), when=lambda prompt: "cook" in prompt),
        Script(scored(*abstention(late, "a")), when=lambda prompt: "late" in prompt),
        Script(answer("a"), when=lambda prompt: "unread" in prompt),
        Script(scored(*answer("a", hits=(watched,)))),
    )
    return ScriptedEngine(scripts, (COOKING, PYTHON))


@pytest.mark.parametrize(
    ("content", "asked", "answered"), [("hi", False, False), ("cook", True, False), ("late", False, True)]
)
async def test_both_sides_are_told(content: str, asked: bool, answered: bool) -> None:
    def check(sides: Any) -> None:
        for side, flagged in (("input", asked), ("output", answered)):
            assert sides[side]["type"] == "moderation_results"
            results = sides[side]["results"]
            assert [each["flagged"] for each in results] == [flagged] * (1 if side == "input" else 2)
            assert [each["categories"] for each in results] == [
                {"skill/cooking": flagged, "skill/python": False} for _ in results
            ]
        assert sides["input"]["results"][0]["category_scores"]["skill/cooking"] == (0.5 / (0.75 if asked else 1.5))
        assert sides["output"]["results"][0]["category_score_kinds"]["skill/cooking"] == "verdict"

    async with serving(engine(), anonymous_role="operator") as served:
        body = chat(content, moderation=ASKED, n=2)
        whole = (await served.post(CHAT, body)).json()
        check(whole["moderation"])
        ChatCompletion.model_validate(whole, strict=True)
        *chunks, done = await served.stream(CHAT, {**body, "stream_options": {"include_usage": True}})
        assert done == "[DONE]"
        assert [index for index, chunk in enumerate(chunks) if "moderation" in chunk] == [len(chunks) - 2]
        told = chunks[-2]
        assert (told["choices"], told["usage"], chunks[-1]["choices"]) == ([], None, [])
        check(told["moderation"])
        ChatCompletionChunk.model_validate(told, strict=True)


@pytest.mark.parametrize(("content", "asked", "answered"), [("hi", False, False), ("cook", True, False)])
async def test_a_response_has_one_result_of_each_side(content: str, asked: bool, answered: bool) -> None:
    async with serving(engine()) as served:
        body = responses(content, moderation=ASKED)
        whole = (await served.post(RESPONSES, body)).json()
        last = (await served.stream(RESPONSES, body))[-1]["response"]
        for told in (whole, last):
            Response.model_validate(told)
            sides = told["moderation"]
            assert [sides[side]["type"] for side in ("input", "output")] == ["moderation_result"] * 2
            assert (sides["input"]["flagged"], sides["output"]["flagged"]) == (asked, answered)


async def test_nothing_is_told_where_it_is_not_asked_for() -> None:
    async with serving(engine()) as served:
        for fields in ({}, {"moderation": None}):
            assert "moderation" not in (await served.post(CHAT, chat(**fields))).json()
            assert "moderation" not in (await served.post(RESPONSES, responses(**fields))).json()
        assert all("moderation" not in chunk for chunk in await served.stream(CHAT, chat()))


async def test_users_are_told_verdicts_only() -> None:
    async with serving(engine()) as served:
        told = (await served.post(CHAT, chat("cook", moderation=ASKED))).json()["moderation"]["input"]["results"][0]
        assert told["category_scores"] == {"skill/cooking": 1.0, "skill/python": 0.0}


async def test_an_answer_without_readings_tells_nothing() -> None:
    async with serving(engine()) as served:
        error = await served.error(CHAT, chat("unread", moderation=ASKED))
        assert (error["status"], error["code"]) == (500, "guard_error")
        assert (await served.post(CHAT, chat("unread"))).status_code == 200, "the scripted answer is sound else"


@pytest.mark.parametrize(
    ("moderation", "status", "param"),
    [
        ({"model": "omni-moderation-latest"}, 404, "moderation.model"),
        ({}, 400, "moderation.model"),
        ({**ASKED, "policy": {"input": {"mode": "score"}}}, 400, "moderation.policy.input.mode"),
        ({**ASKED, "policy": {"output": {"mode": "score"}}}, 400, "moderation.policy.output.mode"),
        ({**ASKED, "policy": {"output": {"mode": "pass"}}}, 400, "moderation.policy.output.mode"),
        ({**ASKED, "threshold": 1}, 400, "moderation.threshold"),
    ],
)
async def test_no_moderation_loosens_a_guard(moderation: object, status: int, param: str) -> None:
    async with serving(engine()) as served:
        for path, body in ((CHAT, chat()), (RESPONSES, responses())):
            error = await served.error(path, {**body, "moderation": moderation})
            assert (error["status"], error["param"]) == (status, param)
        assert served.engine.submitted == []


async def test_blocking_is_what_happens_anyway() -> None:
    policy = {"input": {"mode": "block"}, "output": None}
    async with serving(engine()) as served:
        answered = await served.post(CHAT, chat(moderation={**ASKED, "policy": policy}))
        assert answered.status_code == 200, answered.text
        assert (await served.error(COMPLETIONS, completion(moderation=ASKED)))["param"] == "moderation"
