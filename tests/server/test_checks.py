"""Verdicts on a prompt without an answer."""

from dataclasses import replace
from typing import Any

import pytest

from guards.core.policy import Rule
from guards.core.verdict import GuardKind, GuardMode, Reading, Scope, Stage, Verdict
from server.engines.events import GuardScore
from server.engines.request import Message
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard, score
from server.errors import UnverifiedError
from server.judging import verdict_of
from tests.server.harness import CHECKS, Served, completion, serving

pytestmark = pytest.mark.anyio

COOKING = guard("c", skill="cooking")
PYTHON = guard("p", skill="python")


def engine(*scores: GuardScore) -> ScriptedEngine:
    made = ScriptedEngine(guards=(COOKING, PYTHON))
    made.scores = scores
    return made


async def rows(served: Served) -> list[dict[str, Any]]:
    response = await served.post(CHECKS, completion())
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_check_of_a_prompt() -> None:
    inside, outside = score(COOKING, Reading.INSIDE), score(PYTHON)
    async with serving(engine(outside, inside), anonymous_role="operator") as served:
        assert (await served.post(CHECKS, completion("abc"))).json() == {
            "object": "list",
            "model": "scripted",
            "prompt_tokens": 3,
            "data": [
                {
                    "guard": "c",
                    "skill": "cooking",
                    "method": "ksd",
                    "verdict": "abstain",
                    "score": 0.25,
                    "tau": 0.5,
                    "layers": [1],
                    "part": "cube 0",
                },
                {
                    "guard": "p",
                    "skill": "python",
                    "method": "ksd",
                    "verdict": "allow",
                    "score": 1.0,
                    "tau": 0.5,
                    "layers": [1],
                    "part": "cube 0",
                },
            ],
        }
        assert served.engine.submitted == []


async def test_check_of_messages_uses_the_template() -> None:
    async with serving() as served:
        body = {"model": "scripted", "messages": [{"role": "developer", "content": "hi"}]}
        tokens = served.engine.encode_chat([Message("system", "hi")])
        assert (await served.post(CHECKS, body)).json()["prompt_tokens"] == len(tokens)


async def test_users_see_verdicts_only() -> None:
    async with serving(engine(score(COOKING, Reading.INSIDE), score(PYTHON))) as served:
        assert [row.keys() for row in await rows(served)] == [{"guard", "skill", "method", "verdict"}] * 2


async def test_shadow() -> None:
    async with serving(engine(score(COOKING, Reading.INSIDE), score(PYTHON)), shadow=("c",)) as served:
        assert [row["verdict"] for row in await rows(served)] == ["shadow", "allow"]


@pytest.mark.parametrize(
    "broken",
    [
        (score(COOKING),),
        (),
        (score(COOKING), score(PYTHON, Reading.MISSING)),
        (score(COOKING), score(PYTHON, Reading.INVALID)),
        (score(COOKING), replace(score(PYTHON), score=float("nan"))),
        (score(COOKING), replace(score(PYTHON), score=float("inf"))),
    ],
)
async def test_reading_that_is_missing_or_invalid_is_an_error(broken: tuple[GuardScore, ...]) -> None:
    async with serving(engine(*broken)) as served:
        error = await served.error(CHECKS, completion())
        assert (error["status"], error["code"]) == (500, "guard_error")


def test_verdict_follows_scope_and_kind() -> None:
    inside = score(COOKING, Reading.INSIDE)
    assert verdict_of(COOKING, inside, COOKING.rule) is Verdict.ABSTAIN
    late = Rule(scope=Scope.GENERATION, taus=COOKING.rule.taus)
    assert verdict_of(COOKING, inside, late) is Verdict.ALLOW
    assert verdict_of(COOKING, replace(inside, stage=Stage.GENERATION), late) is Verdict.ABSTAIN
    shifts = guard("n", kind=GuardKind.INTERVENTION)
    assert verdict_of(shifts, score(shifts, Reading.INSIDE), shifts.rule) is Verdict.ALLOW
    with pytest.raises(UnverifiedError, match="missing"):
        verdict_of(shifts, None, Rule(GuardMode.SHADOW))
